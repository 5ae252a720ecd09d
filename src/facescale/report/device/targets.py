"""What one GPU of 80 GB should reach: target, reached, missing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from facescale.report.device.ceilings import head_floor_ms
from facescale.report.device.results import NOT_MEASURED, Results
from facescale.report.tables import Table

OURS, PEER = "facescale", "arcface_torch"
MOST = "<="
LEAST = ">="


@dataclass(frozen=True)
class Target:
    """A figure to reach."""

    work: str
    sense: str
    """`<=`: at most; `>=`: at least."""
    wanted: float
    unit: str
    reached: float | None

    @property
    def row(self) -> list[str]:
        """Work, target, reached, missing."""
        wanted = f"{self.sense} {_figure(self.wanted)} {self.unit}".rstrip()
        if self.reached is None:
            return [self.work, wanted, NOT_MEASURED, ""]
        reached = f"{_figure(self.reached)} {self.unit}".rstrip()
        short = self.reached - self.wanted
        short = short if self.sense == MOST else -short
        if short <= 0:
            return [self.work, wanted, reached, "nothing"]
        missing = f"{_figure(short)} {self.unit}".rstrip()
        return [self.work, wanted, reached, f"{missing} ({short / self.wanted:.0%})"]


def targets_table(results: Results) -> Table:
    """All targets; they are of a GPU, so a CPU reaches none."""
    measured = results if results.on_card else Results(results.settings, results.fingerprint)
    table = Table("Targets", ["work", "target", "reached", "missing"])
    table.rows = [target.row for target in targets(measured)]
    table.notes = [f"Of one H100 with 80 GB. Measured here: {results.device}."]
    return table


def targets(results: Results) -> Iterator[Target]:
    """Every target, with what was reached where that was measured."""
    yield from _head(results)
    yield Target(
        "head's share of the step that is not hidden (R100, bf16, 360,232 at 0.1)",
        MOST, 40.0, "%", _exposed(results),
    )  # fmt: skip
    for precision, wanted in (("bf16", 3200.0), ("tf32", 1600.0)):
        found: dict[str, Any] = {
            "network": "r100",
            "batch": 256,
            "precision": precision,
            "rate": 0.1,
        }
        ours = results.first("step", who=OURS, way=results.usual, identities=360_232, **found)
        rate = None if ours is None else float(ours["images_per_s"])
        yield Target(f"R100 {precision} b256, full step", LEAST, wanted, "images/s", rate)
        if precision == "bf16":
            peer = results.first("step", who=PEER, **found)
            ratio = rate / peer["images_per_s"] if rate and peer else None
            yield Target("the same over arcface_torch's plan", LEAST, 1.3, "x", ratio)
    for network in ("mbf", "y1"):
        rates = [
            results.first(
                "step", who=OURS, network=network, batch=256, precision="bf16", way=way, rate=0.1
            )
            for way in ("graphs", "eager")
        ]
        graphs, eager = (None if row is None else float(row["images_per_s"]) for row in rates)
        ratio = graphs / eager if graphs and eager else None
        yield Target(f"{network} bf16 b256, CUDA graphs over eager", LEAST, 1.5, "x", ratio)
    for rows, millions in (("float32", 17.0), ("bfloat16", 35.0), ("int8", 140.0)):
        fits = [
            row["fits"] / 1e6 for row in results.rows("memory_all", what="identities", rows=rows)
        ]
        most = max(fits, default=None)
        yield Target(f"most identities, {rows} rows", LEAST, millions, "million", most)


def _head(results: Results) -> Iterator[Target]:
    """The head alone at batch 128."""
    exact: dict[str, Any] = {"walk": "cuda", "rows": "float32", "products": "tf32x3", "batch": 128}
    ours = results.first("head", identities=360_232, rate=0.1, **exact)
    work = "head, 360,232 at 0.1, b128, float32 rows, draw included"
    yield Target(work, MOST, 0.20, "ms", None if ours is None else float(ours["ms"]))
    peer = results.first(
        "head", identities=360_232, rate=0.1, walk=PEER, products="float32", batch=128
    )
    ratio = peer["ms"] / ours["ms"] if ours and peer else None
    yield Target("the same against arcface_torch's plan", LEAST, 10.0, "x", ratio)
    for identities, rate in ((85_742, 1.0), (2_000_000, 0.1), (360_232, 1.0)):
        row = results.first("head", identities=identities, rate=rate, **exact)
        floor = None if row is None else head_floor_ms(results, row)
        over = row["ms"] / floor if row is not None and floor else None
        work = f"head, {identities:,} at {rate:g}, over its floor"
        yield Target(work, MOST, 1.3, "x", over)


def _exposed(results: Results) -> float | None:
    """Per cent of the head's own time by which it makes the step longer."""
    setting: dict[str, Any] = {
        "who": OURS,
        "network": "r100",
        "precision": "bf16",
        "batch": 256,
        "way": results.usual,
    }
    full = results.first("step", identities=360_232, rate=0.1, **setting)
    bare = results.first("step", dataset="", **setting)
    # As the trainer has it there.
    alone: dict[str, Any] = {"walk": "cuda", "rows": "float32", "products": "bf16", "batch": 256}
    head = results.first("head", identities=360_232, rate=0.1, **alone)
    if full is None or bare is None or head is None:
        return None
    return float(100 * max(0.0, full["ms"] - bare["ms"]) / head["ms"])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
