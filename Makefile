PYTHON ?= python3
BIN = .venv/bin
INSTALLED = .venv/installed

.PHONY: setup demo test check fix faults hosts

setup: $(INSTALLED)

# torch first and alone: with it in place no later requirement pulls another build.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev,export]'
	touch $@

demo: setup
	$(BIN)/facescale train quickstart

test: setup
	$(BIN)/pytest -n 2 $(ARGS)

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Kill, cut and damage a run at thirty random moments; minutes.
faults: setup
	FAULTS=30 $(BIN)/pytest -s tests/test_faults.py $(ARGS)

# Two hosts made of network namespaces, the cable between them cut; needs root and iproute2.
hosts: setup
	HOSTS=1 $(BIN)/pytest -n 0 -s tests/test_hosts.py $(ARGS)
