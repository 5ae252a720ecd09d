"""Every command in README and docs is run on small data, or has a reason here why it is not."""

import importlib
import json
import multiprocessing
import os
import pickle
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from conftest import shortened
from facescale import backbones
from facescale.cli import COMMANDS, main
from facescale.report.record import DONE, Record, Run
from facescale.report.settings import Settings, settings_of
from records import jpeg, recordio_set

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

STAND_INS = {
    "/data/faces_emore": "faces",
    "runs/NAME": "runs/emore_r100",
    "NAME": "y1",
    "BATCH": "16",
    "IDENTITIES": "20000",
    "--nproc_per_node=8": "--nproc_per_node=2",  # more ranks are in test_resharding.py
}
"""Words of the documents, and what stands for them here: files of the fixture `places`, numbers."""

SMALL = (
    *("--backbone.name", "y1", "--data.num_classes", "6", "--data.threads", "1"),
    *("--train.batch_size", "4", "--train.steps", "2", "--log_every", "1", "--device", "cpu"),
)
SMALL_REPORT = (
    *("--devices", "1", "--cases", "emore_y1/model_parallel/256", "--runs", "1", "--batch", "2"),
    *("--iterations", "3", "--device", "cpu", "--threads", "1", "--output", "new"),
)


TRAINED_BY_8 = (
    "torchrun --nproc_per_node=8 -m facescale train emore_r100 --data.path /data/faces_emore"
)


@dataclass(frozen=True)
class Rule:
    """What is done with the commands that begin so."""

    begins: str
    more: tuple[str, ...] = ()
    """Options behind those of the document, which override them."""
    slow: bool = False
    """Whether it is run by `make test-all` only; the fast tests do as with one that is not run."""
    not_run: str = ""
    """Why it is only parsed (facescale), a dry run (make), or asked for its help (python)."""


RULES = [
    Rule("facescale train emore_r100", SMALL),
    Rule("facescale train small", not_run="on sets of the commands before it"),
    Rule("facescale verify runs/emore_r100"),
    Rule("facescale data pack"),
    Rule("facescale data convert"),
    Rule("facescale train emore_r100 --data.path '[", (*SMALL, "--data.num_classes", "8")),
    Rule("facescale train emore_r100 --data.path 'https", not_run="needs a server"),
    Rule("facescale verify model.pt", ("--backbone", "mbf")),
    Rule("facescale verify model.onnx"),
    Rule("facescale ijb", not_run="needs IJB; see test_cli_ijb.py"),
    Rule("facescale embed"),
    Rule("facescale identify"),
    Rule("facescale compare"),
    Rule("facescale import weights"),
    Rule("facescale export runs/emore_r100"),
    Rule("facescale export runs/emore_r100 model.onnx --dtype int8", slow=True),
    Rule("facescale export runs/emore_r100 --package", not_run="YuNet; see test_package.py"),
    Rule("facescale unpack RUN --old", not_run="for checkpoints of old versions; see test_old.py"),
    Rule("facescale import config"),
    Rule("facescale plan", ()),
    Rule("facescale data inspect /data/faces_emore"),
    Rule("facescale data check /data/faces_emore"),
    Rule("facescale data check aligned"),
    Rule("facescale data pairs"),
    Rule("facescale data pairs lfw/pairs.csv", not_run="on files of the command before it"),
    Rule("facescale data pairs held_out", not_run="on the set of the command before it"),
    Rule(
        "facescale embed runs/emore_r100 photos", not_run="it needs a detector; see test_embed.py"
    ),
    Rule("facescale identify gallery.npz visitor.jpg", not_run="as embed"),
    Rule("facescale data align", not_run="it needs the file of a detector; see test_align.py"),
    Rule("facescale data split /data/faces_emore"),
    Rule("facescale data split aligned", ("--fraction", "0.5")),
    Rule("facescale data merge /data/faces_emore"),
    Rule("facescale data clean /data/faces_emore"),
    Rule("facescale bench kernels", ("head/2000", "--rounds", "1", "--against", "dense")),
    Rule("facescale bench report --cases none", ("--output", "new")),
    Rule("facescale bench report --devices 1,4,8", SMALL_REPORT),
    Rule("facescale bench report --devices 1,8", not_run="hours; as the one above"),
    Rule("facescale bench report --devices 1,2", not_run="two hours"),
    Rule("facescale bench report --devices 1 ", not_run="an hour, gigabytes"),
    Rule("facescale bench page"),
    Rule("facescale bench device", ("--sizes", "tiny", "--budget", "6", "--phases", "ceilings")),
    Rule("torchrun --nproc_per_node=8 -m facescale data align", not_run="as without torchrun"),
    Rule("torchrun --nnodes=2", not_run="needs two hosts; see test_hosts.py"),
    Rule("torchrun --nproc_per_node=4", not_run="as with 8 ranks; see test_resharding.py"),
    Rule("torchrun --nproc_per_node=8 -m facescale train glint360k", not_run="as face_emore"),
    Rule(TRAINED_BY_8, (*SMALL, "--head.sample_rate", "0.5")),
    Rule(f"{TRAINED_BY_8} --evaluation", (*SMALL, "--head.sample_rate", "0.5"), slow=True),
    Rule("make", not_run="it installs, or runs all tests; a dry run shows that the target exists"),
    Rule(
        "python cluster/growth.py",
        ("--ranks", "8", "--backbone", "y1", "--classes", "1000", "--batch", "2"),
        slow=True,
    ),
    Rule("python cluster/scaling.py", not_run="minutes on a quiet machine; its help is asked for"),
]


def fenced(text: str) -> list[str]:
    """The commands in fences without a language, or of a shell."""
    commands = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for block in (block for language, block in blocks if language in ("", "bash", "sh")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if _BEGINS.match(line) else []
            commands += [shlex.join(words)] if words else []
    return commands


_BEGINS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:facescale|torchrun|make|python3?|pip|cluster/\S+)\b")


def scripts(text: str) -> list[str]:
    """The commands that run a script, in a sentence."""
    return re.findall(r"`(python cluster/[^`]+)`", text)


def inline(text: str) -> list[str]:
    """The commands of facescale with arguments, in a sentence."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = (" ".join(span.split()) for span in re.findall(r"`(facescale [^`]+)`", text))
    return [span for span in spans if _has_arguments(span) and "..." not in span]


def _has_arguments(command: str) -> bool:
    words = command.split()[1:]
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    return re.match(r"[\w./]", command.removeprefix(f"facescale {name}").strip()) is not None


FENCED = {
    command: path.name
    for path in DOCUMENTS
    for command in (*fenced(path.read_text()), *scripts(path.read_text()))
}
"""Each command, and the last document that has it."""
INLINE = sorted({command for path in DOCUMENTS for command in inline(path.read_text())})


def rule_of(command: str) -> Rule | None:
    fitting = [rule for rule in RULES if command.startswith(rule.begins)]
    return max(fitting, key=lambda rule: len(rule.begins), default=None)


def test_every_command_has_a_rule_and_every_rule_a_command() -> None:
    rules = {command: rule_of(command) for command in FENCED}
    assert [command for command, rule in rules.items() if rule is None] == []
    assert [rule.begins for rule in RULES if rule not in rules.values()] == []
    assert len(FENCED) > 15
    assert len(INLINE) > 10


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with small files under the names that the documents use; networks are short."""
    with shortened():
        yield _filled(tmp_path_factory)


def _filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    random = np.random.default_rng(0)
    for name in ("faces", "NEW"):
        (folder / name).mkdir()
        recordio_set(folder / name, [label for label in range(6) for _ in range(4)], random)
    for person in ("ann", "bob"):
        (folder / "people" / person).mkdir(parents=True)
        (folder / "people" / person / "0.jpg").write_bytes(jpeg(random))
    for number in range(32):
        person = f"p{number // 4}"
        (folder / "aligned" / person).mkdir(parents=True, exist_ok=True)
        name = f"{person}_{number % 4 + 1:04}.jpg"
        (folder / "aligned" / person / name).write_bytes(jpeg(random))
    (folder / "pairs.txt").write_text("1\t1\np0\t1\t2\np0\t1\tp7\t4\n")
    for name in ("lfw", "agedb_30", "cfp_fp"):
        pairs = ([jpeg(random) for _ in range(40)], [place % 2 == 0 for place in range(20)])
        (folder / f"{name}.bin").write_bytes(pickle.dumps(pairs))
        (folder / "faces" / f"{name}.bin").write_bytes(pickle.dumps(pairs))
    torch.save(backbones.build("mbf", family="arcface_torch").state_dict(), folder / "model.pt")
    (folder / "map.txt").write_text("0\n3\nnew\n1\nnew\n2\n")
    (folder / "configs").mkdir()
    theirs = "config = edict()\nconfig.network = 'r100'\nconfig.num_classes = 2059906\n"
    (folder / "configs" / "wf42m_pfc02_r100_16gpus.py").write_text(theirs)
    logs = folder / "oneflow_face" / "logs" / "1n8g"
    logs.mkdir(parents=True)
    lines = [f"train: iter {i}, loss 9.0, throughput: {200 + i}.0" for i in range(150)]
    (logs / "r100.log").write_text("\n".join(lines))
    record = Record(settings_of(Settings()), {"torch": torch.__version__})
    record.cell("emore_r100/partial_fc/64", 1).runs = [Run(DONE, rates=[4.0])]
    (folder / "runs" / "report").mkdir(parents=True)
    for name in ("A.json", "B.json", "runs/report/results.json"):
        record.save(folder / name)
    (folder / "runs" / "device").mkdir()
    chosen = {"device": "cpu", "sizes": "tiny", "budget_s": 1.0}
    measured = {"format": "device 1", "settings": chosen, "fingerprint": {}, "phases": {}}
    (folder / "runs" / "device" / "device.json").write_text(json.dumps(measured))
    before = Path.cwd()
    os.chdir(folder)
    main(["train", "emore_r100", "--data.path", "faces", *SMALL, "--output", "runs/emore_r100"])
    if find_spec("onnxruntime"):
        main(["export", "runs/emore_r100", "model.onnx"])
    main(["embed", "runs/emore_r100", "faces", "gallery.npz"])
    os.chdir(before)
    (folder / "photo.jpg").write_bytes(jpeg(random))
    shutil.copytree(folder / "runs" / "emore_r100", folder / "runs" / "old")
    return folder


@pytest.fixture
def here(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: its own copy of `places`, so that no command sees another one's files."""
    shutil.copytree(places, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    fork = multiprocessing.get_context("fork")  # without Python's start and imports
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "here"
    signal.signal(signal.SIGTERM, before)


def with_stand_ins(command: str) -> list[str]:
    for name, stand_in in STAND_INS.items():
        command = command.replace(name, stand_in)
    return shlex.split(command)


Parse = Callable[[list[str]], None]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """Read the words of a command of facescale, but do nothing."""

    def read(words: list[str]) -> None:
        called: list[object] = []
        name = " ".join(words[:2])  # a command of a group, such as `bench report`
        name = name if name in COMMANDS else words[0]
        module = importlib.import_module(f"facescale.cli.{name.replace(' ', '_')}")
        monkeypatch.setattr(module, "run", called.append)
        main(words)
        assert len(called) == 1

    return read


def commands() -> list[Any]:
    found = []
    for command, document in FENCED.items():
        name, rule = f"{document}: {command[:60]}", rule_of(command)
        if rule is None:
            continue
        if rule.slow:
            found += [pytest.param(command, rule, id=f"{name}, run", marks=pytest.mark.slow)]
            rule = replace(rule, not_run="slow")
        found += [pytest.param(command, rule, id=name)]
    return found


@pytest.mark.parametrize(("command", "rule"), commands())
def test_a_command_of_the_documents_runs(
    command: str, rule: Rule, here: Path, parse: Parse
) -> None:
    words = with_stand_ins(command)
    if words[0] == "facescale" and rule.not_run:
        parse(words[1:])
    elif words[0] == "facescale":
        main([*words[1:], *rule.more])
    elif words[0] == "torchrun" and rule.not_run:
        parse(words[words.index("facescale") + 1 :])
    elif words[0] == "torchrun":
        words = [word.replace("=8", "=2") for word in words[1:]]
        said = run([sys.executable, "-m", "torch.distributed.run", *words, *rule.more])
        assert said.count("Global Step: 2") == 1  # rank 0 alone speaks
        folder = words[words.index("--output") + 1] if "--output" in words else "runs/emore_r100-2"
        assert (here / folder / "model.safetensors").exists()
    elif words[0] == "make":
        run(["make", "-n", "-C", str(ROOT), *words[1:]])
    else:
        script = str(ROOT / words[1])
        if not rule.not_run:
            run([sys.executable, script, *words[2:], *rule.more])
            return
        with mock.patch.object(sys, "argv", [script, "--help"]), pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
        assert not end.value.code


def run(words: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", INLINE)
def test_a_command_in_a_sentence_has_the_options_that_it_names(
    command: str, here: Path, parse: Parse
) -> None:
    parse(with_stand_ins(command)[1:])


def test_the_options_of_the_readmes_table_exist(here: Path, parse: Parse) -> None:
    rows = re.findall(r"^\|.*\| `(--.+)` *\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    options = [row for line in rows for row in line.split("`, or `")]
    assert len(options) >= 10
    for option in options:
        parse(["train", "emore_r100", *shlex.split(option)])


def test_files_that_the_documents_name_exist() -> None:
    whole = re.compile(r"`([\w./]+/[\w.]+\.(?:py|cpp|h|sh|yaml|md|png))`")
    within = re.compile(r"\b(?:tests|cluster)/[\w/]+\.\w+")
    for path in DOCUMENTS:
        for name in (*whole.findall(path.read_text()), *within.findall(path.read_text())):
            places = (ROOT / name, ROOT / "src" / "facescale" / name, ROOT / "docs" / name)
            assert any(place.exists() for place in places), f"{path.name}: {name}"


def anchors(text: str) -> set[str]:
    """Where a link into a page can lead: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_the_documents_lead_to_a_page_and_a_heading() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            if "://" not in link:
                assert target.exists(), f"{path.name}: {link}"
                assert not anchor or anchor in anchors(target.read_text()), f"{path.name}: {link}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in pages if f"({name}" not in index} == set()
