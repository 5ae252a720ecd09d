"""A table for each phase of `facescale bench device`."""

from collections.abc import Sequence
from typing import Any

from facescale.report.device.ceilings import head_floor_ms, product_rate
from facescale.report.device.results import Phase, Results
from facescale.report.tables import Table

Row = dict[str, Any]


def phases_table(results: Results) -> Table:
    """How each phase ended."""
    table = Table("Phases", ["phase", "outcome", "s", "rows", "failed", "left out", "reason"])
    for name, phase in results.phases.items():
        failed = sum("failure" in row for row in phase.rows)
        numbers = [len(phase.rows), failed, len(phase.left_out)]
        row = [name, phase.outcome, f"{phase.seconds:.1f}", *map(str, numbers)]
        table.rows.append([*row, _clean(phase.reason)])
    table.notes = ["Left out: there was no time for it. A larger --budget measures more."]
    return table


def phase_tables(results: Results) -> list[Table]:
    """Tables of the phases that have rows."""
    made = []
    for name, table in (
        ("ceilings", _ceilings),
        ("kernels", _kernels),
        ("head", _head),
        ("step", _step),
        ("backbone", _backbone),
        ("ranks", _ranks),
    ):
        phase = results.phases.get(name)
        if phase is not None and phase.rows:
            made.append(_with_failures(table(results, phase.rows), phase))
    return [*made, *_memory(results), *_profile(results)]


def _ceilings(results: Results, rows: Sequence[Row]) -> Table:
    table = Table("Ceilings", ["work", "rate", "ms"])
    for row in _measured(rows):
        shape = " x ".join(f"{size:,}" for size in row.get("shape", ()))
        work = f"{row['what']} {row.get('precision', '')} {shape}".strip()
        rate = f"{row['rate'] / 1e9:,.1f} G{row['unit']}"
        table.rows.append([work, rate, _ms(row["ms"])])
    table.notes = ["Bytes are those read and those written."]
    return table


def _kernels(results: Results, rows: Sequence[Row]) -> Table:
    table = Table("Correctness", ["check", "largest error", "of", "allowed", "passed"])
    for row in _measured(rows):
        passed = "yes" if row["passed"] else "NO"
        errors = [f"{row['error']:.1e}", row["of"], f"{row['limit']:.1e}"]
        table.rows.append([row["what"], *errors, passed])
    table.notes = ["Relative errors, against dense float64 matrices and float64 networks."]
    return table


def _head(results: Results, rows: Sequence[Row]) -> Table:
    table = Table(
        "Head alone: draw, forward, backward, update",
        [
            "identities",
            "rate",
            "batch",
            "walk",
            "rows",
            "products",
            "ms",
            "floor, ms",
            "over floor",
        ],
    )
    table.columns.append("over the first of its size")
    for row in sorted(_measured(rows), key=lambda r: (r["identities"] * r["rate"], r["batch"])):
        same = {name: row[name] for name in ("identities", "rate", "batch")}
        ours = results.first("head", **same)
        floor = head_floor_ms(results, row)
        size = [f"{row['identities']:,}", f"{row['rate']:g}", str(row["batch"])]
        times = [_ms(row["ms"]), *(["", ""] if not floor else [_ms(floor)])]
        times += [f"{row['ms'] / floor:.2f}"] if floor else []
        ratio = f"{row['ms'] / ours['ms']:.2f}" if ours else ""
        table.rows.append([*size, row["walk"], row["rows"], row["products"], *times, ratio])
    table.notes = [
        "Floor: five passes over the drawn rows at the copy's rate, or three products at theirs, "
        "whichever takes longer. arcface_torch: its plan of work, written anew in torch."
    ]
    return table


def _setting(row: Row) -> list[str]:
    """What was measured: network, identities, rate, precision, batch."""
    named = [row["network"], f"{row['identities']:,}", f"{row['rate']:g}", row["precision"]]
    return [*named, str(row["batch"])]


def _step(results: Results, rows: Sequence[Row]) -> Table:
    table = Table(
        "Full training step",
        ["network", "identities", "rate", "precision", "batch", "who", "way"],
    )
    table.columns += ["ms", "images/s", "share of products", "peak, GiB", "reserved, GiB"]
    for row in _measured(rows):
        table.rows.append(
            [
                *_setting(row),
                row["who"],
                row["way"],
                _ms(row["ms"]),
                f"{row['images_per_s']:,.1f}",
                _share(results, row),
                *_gib(row),
            ]
        )
    table.notes = [
        "Images and labels are random. Ours are copied from pinned memory in each step, those of "
        "arcface_torch's plan are on the device. Share: products of the backbone, relative to the "
        "fastest measured product of that precision."
    ]
    return table


def _backbone(results: Results, rows: Sequence[Row]) -> Table:
    columns = ["network", "precision", "batch", "way", "ms", "images/s", "share of products"]
    table = Table("Backbone: forward and backward pass", [*columns, "peak, GiB", "reserved, GiB"])
    for row in sorted(_measured(rows), key=lambda r: (r["network"], r["precision"], -r["batch"])):
        figures = [_ms(row["ms"]), f"{row['images_per_s']:,.1f}", _share(results, row)]
        named = [row["network"], row["precision"], str(row["batch"]), row["way"]]
        table.rows.append([*named, *figures, *_gib(row)])
    table.notes = ["eager: as the trainer runs it. torch: plain layers, contiguous images."]
    return table


def _ranks(results: Results, rows: Sequence[Row]) -> Table:
    columns = ["network", "identities", "rate", "precision", "batch", "ranks", "shards", "ms"]
    table = Table("Rank 0 of 8, without the network", [*columns, "images/s of all ranks"])
    for row in _measured(rows):
        table.rows.append(
            [
                *_setting(row),
                str(row.get("ranks", 1)),
                str(row.get("shards", 1)),
                _ms(row["ms"]),
                f"{row.get('images_per_s_of_all', row['images_per_s']):,.1f}",
            ]
        )
    table.notes = ["Collectives return at once: this is an upper bound for 8 devices."]
    return table


def _memory(results: Results) -> list[Table]:
    """One table over all limits."""
    columns = [
        "limit, GiB",
        "largest",
        "network",
        "precision",
        "rate",
        "batch",
        "identities",
        "rows",
    ]
    table = Table("Limits of memory", [*columns, "planned", "fits", "does not fit", "plan's error"])
    for name, phase in results.phases.items():
        if not name.startswith("memory"):
            continue
        for row in _measured(phase.rows):
            if "fits" in row:
                table.rows.append(_limit(row))
            else:
                table.notes.append(f"{name}: {row.get('note', '')}")
        _with_failures(table, phase)
    table.notes.append("Plan's error: memory that the largest fitting step was planned to take.")
    return [table] if table.rows else []


def _limit(row: Row) -> list[str]:
    planned, used = row.get("planned_gib"), row.get("device_gib")
    of = row["what"]
    return [
        "all" if row["cap_gib"] is None else f"{row['cap_gib']:g}",
        of,
        row["network"],
        row["precision"],
        f"{row['rate']:.3g}",
        "" if of == "batch" else str(row["batch"]),
        "" if of == "identities" else f"{row['identities']:,}",
        str(row.get("rows", "float32")),
        f"{row['predicted']:,}",
        f"{row['fits']:,}",
        "" if row["fails"] is None else f"{row['fails']:,}",
        f"{planned / used - 1:+.1%}" if planned and used else "",
    ]


def _profile(results: Results) -> list[Table]:
    """Totals, and for each step the operations that take most of it."""
    phase = results.phases.get("profile")
    if phase is None:
        return []
    totals = Table(
        "Profile of a step",
        ["who", "busy, ms", "idle, ms", "launches", "graphs", "host reads", "late reads"],
    )
    tables = [totals]
    for row in results.rows("profile", what="total"):
        numbers = [row[n] for n in ("launches", "graph_launches", "host_reads", "late_reads")]
        times = [_ms(row["busy_ms"] or row["ms"]), _ms(row["idle_ms"])]
        totals.rows.append([row["who"], *times, *(f"{number:g}" for number in numbers)])
        title = f"Profile, {row['who']}: {row['network']}, {row['precision']}, batch {row['batch']}"
        top = Table(title, ["operation", "ms of a step", "calls", "share"])
        for line in results.rows("profile", what="operation", who=row["who"]):
            figures = [_ms(line["ms"]), f"{line['count']:g}", f"{line['share']:.1%}"]
            top.rows.append([_clean(line["name"]), *figures])
        tables.append(top)
    totals.notes = [
        "Host reads: calls in which the host waits for the device. Late: one step later."
    ]
    _with_failures(totals, phase)
    return tables if totals.rows else []


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "failure" not in row]


def _with_failures(table: Table, phase: Phase) -> Table:
    """Add what failed as notes."""
    for row in phase.rows:
        if "failure" in row:
            named = (f"{k} {v}" for k, v in row.items() if k != "failure" and v not in ("", None))
            table.notes.append(_clean(f"{', '.join(named)}: {row['failure']}"))
    return table


def _share(results: Results, row: Row) -> str:
    rate = product_rate(results, row["precision"])
    return f"{row['flop'] / (row['ms'] / 1e3) / rate:.0%}" if rate else ""


def _gib(row: Row) -> list[str]:
    values = (row.get("peak_gib"), row.get("reserved_gib"))
    return ["" if value is None else f"{value:.2f}" for value in values]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _clean(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.replace("|", "/").split())
