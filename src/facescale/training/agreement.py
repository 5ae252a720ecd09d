"""All ranks train the same run: configs, code and data are compared before the first step."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from facescale.config import Config
from facescale.config.fields import values
from facescale.distributed import Group

OWN = {"data.path", "data.skip", "data.threads", "data.prefetch", "evaluation.sets"}
"""Options that may differ between ranks: hosts may keep equal data in different places."""

SHOWN = 3  # differences in an error


def check_same(world: Group, facts: Mapping[str, str]) -> None:
    """Compare `facts` over the ranks. A collective; call it with the same names on every rank.

    Raises:
        ValueError: A fact differs; names it, with the values and the ranks that have them. On every
            rank alike.
    """
    everyone = [json.loads(text) for text in world.gather_texts(json.dumps(dict(facts)))]
    names = sorted({name for known in everyone for name in known})
    different = [
        _difference(name, [known.get(name, "not given") for known in everyone])
        for name in names
        if len({known.get(name) for known in everyone}) > 1
    ]
    if different:
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise ValueError(
            f"the ranks do not train the same run: {'; '.join(different[:SHOWN])}{more}. Start "
            "every rank with the same command, code and data"
        )


def of_run(config: Config) -> dict[str, str]:
    """What the ranks of one run share before data is opened: every option, and the code."""
    options = {name: str(value) for name, value in values(config).items() if name not in OWN}
    number_of_sets = str(len(config.evaluation.sets))
    code = {"facescale": _code(), "torch": torch.__version__}
    return options | {"number of evaluation.sets": number_of_sets} | code


def _difference(name: str, values: list[str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    rows = (f"{value} on rank {', '.join(map(str, some[:4]))}" for value, some in ranks.items())
    return f"{name} is {' but '.join(rows)}"


@cache
def _code() -> str:
    """A short digest of this package's sources.

    Reading all files takes about 20 ms, once in a process; modification times differ between hosts.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.rglob("*.cpp"), *root.rglob("*.h"))):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"code {digest.hexdigest()[:12]}"
