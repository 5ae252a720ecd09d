PYTHON ?= python3
BIN = .venv/bin
INSTALLED = .venv/installed

.PHONY: setup demo test test-all check fix faults fuzz hosts

setup: $(INSTALLED)

# torch first and alone, so that no other requirement selects another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev,export,photos]'
	touch $@

demo: setup
	$(BIN)/facescale train quickstart

# The fast tests: minutes.
test: setup
	$(BIN)/pytest -n 2 $(ARGS)

# Those marked slow too.
test-all: setup
	$(BIN)/pytest -n 2 -m "slow or not slow" $(ARGS)

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Kill, stop and damage a run at thirty random moments; minutes.
faults: setup
	FAULTS=30 $(BIN)/pytest -s tests/training/test_faults.py $(ARGS)

# Changed files for every reader of data sets: five minutes each where atheris is installed
# (pip install atheris), else a hundred thousand in all.
FUZZ_S ?= 300
fuzz: setup
	if $(BIN)/python -c "import atheris" 2>/dev/null; then \
	  for reader in $$($(BIN)/python tests/fuzz.py --list); do \
	    $(BIN)/python tests/fuzz_guided.py $$reader $(FUZZ_S) || exit 1; done; \
	else $(BIN)/python tests/fuzz.py $(ARGS); fi

# Two hosts made of network namespaces, with cuts of the network; needs root and iproute2.
hosts: setup
	HOSTS=1 $(BIN)/pytest -n 0 -s tests/training/test_hosts.py $(ARGS)
