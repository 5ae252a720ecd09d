"""Configs of arcface_torch, which are Python files: read by `ast`, never executed.

Understood are assignments to `config.NAME` of literals, arithmetic, and other `config.NAME`s. What
a file does not set has the value of arcface_torch's `configs/base.py`.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facescale.config.plain_yaml import read_short

BASE: Mapping[str, Any] = {
    "margin_list": (1.0, 0.5, 0.0),
    "network": "r50",
    "embedding_size": 512,
    "sample_rate": 1.0,
    "interclass_filtering_threshold": 0,
    "fp16": False,
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "verbose": 2000,
    "frequent": 10,
    "gradient_acc": 1,
    "seed": 2048,
}
"""Of `configs/base.py`, what has a counterpart."""
SILENT = {
    "resume": False,
    "output": None,
    "save_all_states": False,
    "dali": False,
    "momentum": 0.9,
    "suffix_run_name": None,
    "save_artifacts": False,
}
"""Values that need no word."""
_OLD_COSFACE = (1.0, 0.0, 0.4)
"""What `config.loss = "cosface"` meant before there was a `margin_list`."""
REMARKS = {
    "resume": "give --resume on the command line",
    "output": "give --output FOLDER on the command line",
    "save_all_states": "checkpoints are always written; see checkpoint.every",
    "dali": "images are decoded by threads of the loader (data.threads)",
    "momentum": "arcface_torch ignores it and takes 0.9; optim.momentum is 0.9",
    "num_image": "counted from the data",
    "suffix_run_name": "wandb takes its own settings from the environment",
    "save_artifacts": "models are not uploaded",
    "lr_func": "a function; set optim.schedule.kind step, boundaries and scales",
    "loss": "margin_list replaced it in arcface_torch; without one, cosface is (1, 0, 0.4)",
}
"""What to do about keys without a counterpart."""


@dataclass
class Imported:
    """What a config says, in this package's options."""

    options: dict[str, Any] = field(default_factory=dict)
    """By dotted name."""
    notes: list[str] = field(default_factory=list)
    """What has no counterpart or means something else, a line each."""


@dataclass(frozen=True)
class _Set:
    """A key that the file sets."""

    value: Any
    line: int


def read(path: Path, gpus: int) -> Imported:
    """The options of an arcface_torch config for a run on `gpus` GPUs.

    Their number turns warm-up epochs into steps, as arcface_torch does.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not Python, too large, or a value is not of the expected kind.
    """
    if gpus < 1:
        raise ValueError(f"--gpus must be at least 1, got {gpus}")
    content, found = read_short(path), Imported()
    try:
        keys = _keys(ast.parse(content), found.notes)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is not a Python file: {error!s:.200}") from error
    if not keys:
        raise ValueError(f"{path} sets no config.NAME; it is not a config of arcface_torch")
    try:
        _translate(keys, gpus, found)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise ValueError(f"{path}: a value is not of the kind that is expected: {error}") from error
    return found


def _keys(tree: ast.Module, notes: list[str]) -> dict[str, _Set]:
    """What the file assigns, by key; other statements become notes."""
    keys: dict[str, _Set] = {}
    for node in tree.body:
        name = _assigned(node)
        if name is not None and isinstance(node, ast.Assign):
            try:
                keys[name] = _Set(_value(node.value, keys), node.lineno)
            except (ValueError, ArithmeticError, TypeError):
                remark = REMARKS.get(name, "not a plain value")
                notes.append(f"line {node.lineno}: config.{name} is not read: {remark}")
        elif not _is_preamble(node):
            text = ast.unparse(node).splitlines()[0]
            shown = "..." if "key" in text else text  # of wandb
            notes.append(f"line {node.lineno}: not read: {shown:.80}")
    return keys


def _assigned(node: ast.stmt) -> str | None:
    """NAME of a statement `config.NAME = ...`."""
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1):
        return None
    target = node.targets[0]
    of_config = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
    return target.attr if of_config and isinstance(target, ast.Attribute) else None


def _is_preamble(node: ast.stmt) -> bool:
    """The docstring, `config = edict()`, and imports of anything but another config than base."""
    if isinstance(node, ast.ImportFrom):
        names = {alias.name for alias in node.names}
        is_base = (node.module or "").rpartition(".")[2] == "base"
        return is_base or not names & {"config", "*"}
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        return not (node.value.args or node.value.keywords)  # which would be values
    return isinstance(node, ast.Import)


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def _value(node: ast.expr, keys: Mapping[str, _Set]) -> Any:
    """The value of an expression; ValueError for what is none of the understood ones."""
    if isinstance(node, ast.Attribute) and node.attr in keys:
        return keys[node.attr].value
    if isinstance(node, ast.Tuple | ast.List):
        return [_value(item, keys) for item in node.elts]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        sides = _value(node.left, keys), _value(node.right, keys)
        if all(isinstance(side, int | float) for side in sides):
            return _OPERATORS[type(node.op)](*sides)
        raise ValueError("arithmetic of other things than numbers")
    value = ast.literal_eval(node)
    if isinstance(value, dict | set | bytes | complex):
        raise ValueError("not a plain value")
    return value


def _translate(keys: dict[str, _Set], gpus: int, found: Imported) -> None:
    """Fill in options and notes."""
    values = {**BASE, **{name: one.value for name, one in keys.items()}}
    options, notes = found.options, found.notes
    options |= {
        "backbone.name": values["network"],
        "backbone.family": "arcface_torch",
        "head.sample_rate": float(values["sample_rate"]),
        "optim.name": values["optimizer"],
        "optim.head_name": values["optimizer"],
        "optim.lr": values["lr"],
        "optim.weight_decay": values["weight_decay"],
        "optim.clip_norm": 5.0,
        "train.precision": "fp16" if values["fp16"] else "float32",
        "train.batch_size": values["batch_size"],
        "train.accumulate": values["gradient_acc"],
        "seed": values["seed"],
        "log_every": values["frequent"],
    }
    if values["embedding_size"] != BASE["embedding_size"]:  # which its networks have anyway
        options["backbone.embedding_dim"] = values["embedding_size"]
    if values["interclass_filtering_threshold"] > 0:
        options["head.interclass_filter"] = values["interclass_filtering_threshold"]
    if "margin_list" not in keys and values.get("loss") == "cosface":
        values["margin_list"] = _OLD_COSFACE
    _margin(values, keys, found)
    _data(values, options)
    _schedule(values, gpus, found)
    if values.get("val_targets"):
        options["evaluation.sets"] = list(values["val_targets"])
        options["evaluation.every"] = values["verbose"]
    if values.get("using_wandb"):
        options["trackers"] = ["console", "jsonl", "wandb"]
    if values.get("dali_aug"):
        options["data.augment.recipe"] = "arcface_torch"
    _accumulation(values["gradient_acc"], keys, found)
    known = {*BASE, *_READ}
    for name, one in keys.items():
        if name in known or (name in SILENT and one.value == SILENT[name]):
            continue
        if name.startswith("wandb") and not values.get("using_wandb"):
            continue
        where = "wandb takes its own settings from the environment"
        remark = REMARKS.get(name, where if name.startswith("wandb") else "no counterpart")
        shown = "..." if "key" in name else repr(one.value)
        notes.append(f"line {one.line}: config.{name} = {shown:.60}: {remark}")


_READ = (
    *("rec", "num_classes", "num_image", "num_epoch", "warmup_epoch", "val_targets"),
    *("using_wandb", "dali_aug", "num_workers"),
)
"""Keys with a counterpart that `BASE` does not set."""


def _accumulation(batches: int, keys: Mapping[str, _Set], found: Imported) -> None:
    """Sums of gradients there are means here: the same steps have other rates."""
    if batches <= 1:
        return
    options, also = found.options, ""
    options["optim.clip_norm"] /= batches
    if options["optim.name"] == "sgd":
        options["optim.weight_decay"] /= batches
        options["optim.lr"] *= batches
        also = ", and optim.weight_decay too; optim.lr is multiplied by it"
    found.notes.append(
        f"line {keys['gradient_acc'].line}: config.gradient_acc = {batches}: arcface_torch adds up "
        "the gradients, train.accumulate takes their mean: optim.clip_norm is divided by that "
        f"number{also}"
    )


def _margin(values: Mapping[str, Any], keys: Mapping[str, _Set], found: Imported) -> None:
    """The margin as arcface_torch computes it: with an m3, m1 and m2 do not count."""
    m1, m2, m3 = (float(number) for number in values["margin_list"])
    where = f"line {keys['margin_list'].line}: " if "margin_list" in keys else ""
    if m3 > 0:
        found.options |= {"head.margin.m2": 0.0, "head.margin.m3": m3}
        if (m1, m2) != (1.0, 0.0):
            found.notes.append(
                f"{where}margin_list has m3, so arcface_torch ignores m1 = {m1:g} and m2 = {m2:g}, "
                "and so do these options; set head.margin.m1 and m2 for the combined margin"
            )
    elif m1 == 1.0:
        found.options |= {"head.margin.m2": m2, "head.margin.gradient": "straight-through"}
    else:
        found.options |= {"head.margin.m1": m1, "head.margin.m2": m2}
        found.notes.append(f"{where}arcface_torch fails with m1 = {m1:g}; here it is applied")


def _data(values: Mapping[str, Any], options: dict[str, Any]) -> None:
    if "rec" in values:
        options["data.path"] = values["rec"]
    if "num_classes" in values:
        options["data.num_classes"] = values["num_classes"]
    if "num_image" in values:
        options["data.num_images"] = values["num_image"]
    if "num_workers" in values:
        options["data.threads"] = max(1, values["num_workers"])  # 0: none beside the main one
    if "num_epoch" in values:
        options["train.epochs"] = float(values["num_epoch"])


def _schedule(values: Mapping[str, Any], gpus: int, found: Imported) -> None:
    """The warm-up, in steps of a run on so many GPUs."""
    epochs = values.get("warmup_epoch", 0)
    if epochs <= 0:
        return
    if "num_image" not in values:
        found.notes.append(f"warmup_epoch = {epochs:g} needs num_image: set optim.schedule.warmup")
        return
    steps = values["num_image"] // (values["batch_size"] * gpus) * epochs
    found.options["optim.schedule.warmup"] = int(steps)
    found.notes.append(
        f"warmup_epoch = {epochs:g} is {int(steps)} steps on {gpus} GPUs: optim.schedule.warmup"
    )
