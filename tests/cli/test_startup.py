"""Starting costs nothing: help and mistakes are answered without torch."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "matplotlib", "facescale.training")

PROGRAM = """
import sys, time
before = time.process_time()
from facescale.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = [name for name in {heavy} if name in sys.modules]
    print(f"\\n{{time.process_time() - before:.3f}} {{','.join(heavy)}}", file=sys.stderr)
"""


def answer(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float, str]:
    """What a command says in a process of its own, its seconds of CPU, what it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    seconds, _, heavy = done.stderr.splitlines()[-1].partition(" ")
    return done, float(seconds), heavy


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("--help", 0, "train a backbone and its class centres"),
        ("presets", 0, "emore_r100"),
        ("presets --json", 0, '"name": "emore_r100"'),
        ("keys margin warm", 0, "head.margin.warmup"),
        (
            "keys nosuchword",
            2,
            "nosuchword in its name or meaning; `facescale keys` lists them all",
        ),
        ("train --help", 0, "--head.sample_rate X"),
        ("plan --help", 0, "--devices N"),
        ("verify --help", 0, "--folds N"),
        ("bench --help", 0, "kernels"),
        ("bench kernels --help", 0, "--against"),
        ("trian", 2, "unknown command 'trian', did you mean train?"),
        ("bench fly", 2, "unknown command 'fly'; there are report, page, case"),
        ("train", 2, "required: PRESET"),
        ("verify", 2, "required: MODEL, SET"),
        ("train nosuch", 2, "nosuch is neither a preset"),
        ("train quikstart", 2, "did you mean quickstart?"),
        ("train quickstart --optim.lr -1", 2, "optim.lr must be greater than 0, got -1"),
        ("train quickstart --optim.lrr 1", 2, "--optim.lrr, did you mean --optim.lr?"),
        ("train quickstart --print_config", 0, "path: att"),
    ],
)
def test_it_is_answered_without_torch(arguments: str, status: int, said: str) -> None:
    done, seconds, heavy = answer(*arguments.split())
    assert done.returncode == status, done.stderr
    assert said in (done.stdout if status == 0 else done.stderr)
    assert heavy == ""
    assert seconds < 0.5  # of this process, whoever else is on the machine


def test_the_package_is_imported_without_torch() -> None:
    program = "import sys, facescale; print('torch' in sys.modules, facescale.MarginHead.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "MarginHead"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import facescale

    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        _ = facescale.fly
    assert set(facescale.__all__) <= set(dir(facescale))
    assert set(facescale.__all__) == set(facescale._PLACES)


def test_the_help_of_train_opens_with_what_people_need() -> None:
    done, _, _ = answer("train", "--help")
    lines = done.stdout.splitlines()
    assert lines[0] == "usage: facescale train PRESET [options]"
    first = lines[:16]
    for option in (
        *("--data.path", "--backbone.name", "--head.sample_rate", "--train.batch_size"),
        *("--train.steps", "--train.epochs", "--train.precision", "--evaluation.sets"),
        *("--output", "--resume"),
    ):
        assert any(option in line for line in first), option
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    sections = ["data", "backbone", "head", "optim", "train", "start", "evaluation", "checkpoint"]
    assert titles == ["arguments:", "options:", "all options:", *(f"{name}:" for name in sections)]
    assert all(len(line) <= 110 for line in lines)


def test_every_option_has_a_line_of_help() -> None:
    from facescale.cli.options import docs
    from facescale.config.fields import fields

    assert set(docs()) == set(fields())
