"""What the folders of training runs say: their figures, their config, and how far they came."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facescale.config.plain_yaml import read_yaml
from facescale.files import shortest_names
from facescale.training.metrics import read_metrics

Row = dict[str, Any]
ACCURACY = "/accuracy"


@dataclass(frozen=True)
class TrainingRun:
    """A run folder.

    Attributes:
        name: Short, and different from that of the others.
        folder: Where it lies.
        config: Options by their dotted names; empty if there is no config.yaml.
        rows: Records of metrics.jsonl, in order; empty if there is none.
        finished: Whether its model.safetensors was written.
    """

    name: str
    folder: Path
    config: dict[str, str]
    rows: list[Row]
    finished: bool

    def series(self, key: str) -> list[tuple[int, float]]:
        """Steps and values of a figure where it is a finite number."""
        return [
            (row["step"], float(row[key]))
            for row in self.rows
            if key in row and abs(float(row[key])) < float("inf")
        ]

    @property
    def sets(self) -> list[str]:
        """Names of its verification sets."""
        keys = dict.fromkeys(key for row in self.rows for key in row if key.endswith(ACCURACY))
        return [key.removesuffix(ACCURACY) for key in keys]

    @property
    def step(self) -> int:
        """The last step that it tells of."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def num_steps(self) -> int | None:
        """How many steps the run was to have; from its epochs if need be, None if unknown."""
        given = self.config.get("train.steps", "")
        if given.isdecimal():
            return int(given)
        epochs = self.series("epoch")
        try:
            wanted = float(self.config["train.epochs"])
        except (KeyError, ValueError):
            return None
        return round(epochs[-1][0] * wanted / epochs[-1][1]) if epochs and epochs[-1][1] else None

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if not self.rows:
            return "no figures yet"
        of = "" if self.num_steps is None else f" of {self.num_steps:,}"
        if self.finished:
            early = self.num_steps is not None and self.step < self.num_steps
            return f"finished early at step {self.step:,}{of}" if early else "finished"
        return f"not finished: step {self.step:,}{of}"

    @property
    def rate(self) -> float | None:
        """Median of images/s without the first record, which has the start in it."""
        rates = [value for _, value in self.series("images_per_s")]
        return statistics.median(rates[1:] or rates) if rates else None


def read_runs(folders: Sequence[str]) -> list[TrainingRun]:
    """The runs in these folders.

    Raises:
        FileNotFoundError: A folder holds no run.
        ValueError: A file of a run is damaged, or a folder is given twice.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("a run is given twice")
    names = shortest_names([path.resolve() for path in paths])
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(folder: Path, name: str) -> TrainingRun:
    config, metrics = folder / "config.yaml", folder / "metrics.jsonl"
    if not (config.is_file() or metrics.is_file()):
        raise FileNotFoundError(
            f"{folder} is no run: it has neither config.yaml nor metrics.jsonl; give a run folder"
        )
    return TrainingRun(
        name,
        folder,
        config=dict(_flat(read_yaml(config))) if config.is_file() else {},
        rows=read_metrics(metrics),
        finished=(folder / "model.safetensors").is_file(),
    )


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Options by their dotted names."""
    for name, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "" if value is None else f"{value!s:.200}"


def all_sets(runs: Iterable[TrainingRun]) -> list[str]:
    """Names of the verification sets of all runs together."""
    return list(dict.fromkeys(name for run in runs for name in run.sets))
