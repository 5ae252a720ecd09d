"""The results of `facescale bench device`, as its JSON file holds them."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from facescale.report.checked import built

FORMAT = "device 1"
NOT_MEASURED = "not measured"


@dataclass
class Phase:
    """What a phase found, and how it ended."""

    outcome: str
    """`done`, `out of memory`, `killed by signal 9`, `error`, `no end`, `not run`."""
    reason: str = ""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    """What there was no time for."""


@dataclass(frozen=True)
class DeviceSettings:
    """What was chosen on the command line."""

    device: str
    sizes: str
    budget_s: float


@dataclass
class Results:
    """All phases, with the device that they were measured on."""

    settings: DeviceSettings
    fingerprint: dict[str, Any]
    phases: dict[str, Phase] = field(default_factory=dict)

    @property
    def on_card(self) -> bool:
        """Whether a CUDA device was measured."""
        return self.settings.device == "cuda"

    @property
    def usual(self) -> str:
        """The way in which the trainer takes a step on the device by default."""
        return "graphs" if self.on_card else "eager"

    @property
    def device(self) -> str:
        """Name of the device."""
        name = "gpu" if self.on_card else "processor"
        return str(self.fingerprint.get(name) or self.settings.device)

    def rows(self, *phases: str, **wanted: Any) -> Iterator[dict[str, Any]]:
        """Rows with a figure of these phases that have these values."""
        for name in phases:
            for row in self.phases[name].rows if name in self.phases else ():
                if "failure" not in row and all(row.get(k) == v for k, v in wanted.items()):
                    yield row

    def first(self, *phases: str, **wanted: Any) -> dict[str, Any] | None:
        """The first of `rows`."""
        return next(self.rows(*phases, **wanted), None)


def is_device_file(path: Path) -> bool:
    """Whether a file is one of `facescale bench device`, by its beginning."""
    return path.is_file() and FORMAT.encode() in path.read_bytes()[:200]


def load(path: Path) -> Results:
    """Read what `facescale bench device` wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file, or one that was damaged; the text says where.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; pass the device.json of a benchmark")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a device.json of format {FORMAT!r}")
    try:
        results: Results = built(Results, values, "results")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return results


def kept_phases(
    path: Path, chosen: Collection[str], device: str, sizes: str, fingerprint: Mapping[str, Any]
) -> dict[str, Any]:
    """The phases in the file of an earlier run that a run of the phases `chosen` keeps, by name.

    Args:
        path: A device.json; there may be none.
        chosen: Names of the phases that are measured again.
        device: "cuda" or "cpu", of the run to come.
        sizes: Likewise, a name of `SIZES`.
        fingerprint: Of hardware and software now.

    Raises:
        ValueError: The phases to keep were measured elsewhere or otherwise, or the file is damaged.
    """
    if not path.exists():
        return {}
    earlier = load(path)
    kept = {name: asdict(phase) for name, phase in earlier.phases.items() if name not in chosen}
    settings = earlier.settings
    then = {**earlier.fingerprint, "--device": settings.device, "--sizes": settings.sizes}
    for name, value in {**fingerprint, "--device": device, "--sizes": sizes}.items():
        if kept and then.get(name) != value:
            raise ValueError(
                f"{path} has {', '.join(kept)}, measured with {name} {then.get(name)}, and now it "
                f"is {value}; pass another --output, or measure all phases, without --phases"
            )
    return kept
