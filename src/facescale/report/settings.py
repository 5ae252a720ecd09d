"""How a benchmark is run: the procedure's numbers, and what was chosen on the command line."""

from dataclasses import asdict, dataclass, field
from typing import Any

from facescale.config.intervals import Interval

_RANGES = {
    "devices": Interval(1),
    "runs": Interval(1),
    "iterations": Interval(3),
    "pause_s": Interval(0),
    "memory": Interval(1),
    "threads": Interval(1),
    "search_precision": Interval(0),
    "timeout_s": Interval(0, ends="(]"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The procedure of a benchmark. The defaults are those of the published report.

    Attributes:
        devices: Numbers of devices to measure on.
        runs: Runs of a cell; its figure is their median.
        iterations: Steps of a run; the last two thirds are counted.
        pause_s: Seconds between two runs.
        batch: Samples per device; None means the report's 64 and 256.
        own: By network, `batch` and `iterations` of its own in place of those.
        data: Folder of each data set (emore, glint360k); a set without one is synthetic.
        memory: Limits of a rank in bytes, for the searches. On CUDA the GPU is a limit by itself.
        device: "auto", "cpu" or "cuda".
        threads: Threads of a rank, on the CPU.
        precision: Of the search for the most identities; None means the preset's.
        search_precision: Relative gap at which a search stops.
        timeout_s: Seconds after which a run is ended.
    """

    devices: tuple[int, ...] = (1, 4, 8)
    runs: int = 5
    iterations: int = 150
    pause_s: float = 20.0
    batch: int | None = None
    own: dict[str, dict[str, int]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    memory: tuple[int, ...] = ()
    device: str = "auto"
    threads: int = 1
    precision: str | None = None
    search_precision: float = 0.04
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        chosen = [(name, getattr(self, name)) for name in _RANGES]
        chosen += [("iterations", self.iterations_of(network)) for network in self.own]
        for name, value in chosen:
            for number in value if isinstance(value, tuple) else [value]:
                if number not in _RANGES[name]:
                    raise ValueError(f"{name} must be {_RANGES[name]}, got {number:g}")
        if not self.devices:
            raise ValueError("devices must have at least one number, got none")

    def batch_of(self, network: str) -> int | None:
        """Samples per device for a network; None means the report's."""
        return self.own.get(network, {}).get("batch", self.batch)

    def iterations_of(self, network: str) -> int:
        """Steps of a run of a network."""
        return self.own.get(network, {}).get("iterations", self.iterations)


def counted_of(iterations: int) -> int:
    """Iterations that count: 100 of 150; the first third is warm-up."""
    return 2 * iterations // 3


def settings_of(settings: Settings) -> dict[str, Any]:
    """The settings as results.json holds them."""
    values = {**asdict(settings), "counted": counted_of(settings.iterations)}
    return values | {name: list(values[name]) for name in ("devices", "memory")}
