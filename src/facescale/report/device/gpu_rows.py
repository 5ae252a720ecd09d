"""The published report's rows of one device, beside what this GPU did."""

from typing import Any

from facescale.report.cases import MATRIX, MAX, MODES, NETWORKS, Case
from facescale.report.device.results import NOT_MEASURED, Results
from facescale.report.published import DEVICES, HARDWARE, MOST_IDENTITIES, THROUGHPUT
from facescale.report.record import DONE, Record, Run
from facescale.report.settings import Settings, settings_of
from facescale.report.tables import PUBLISHED, THIS, Table

ONE = DEVICES.index(1)
COMMAND = "facescale bench device"


def record_of(results: Results) -> Record:
    """The rows of one GPU as `facescale bench report` keeps them, for its pages and comparisons.

    With one device, data parallel and model parallel are the same work.
    """
    settings = Settings(
        devices=(1,), runs=1, iterations=8, pause_s=0.0, device=results.settings.device
    )
    record = Record(settings_of(settings), results.fingerprint)
    for case in MATRIX if results.on_card else ():
        row = _row(results, case)
        if row is None:
            continue
        cell = record.cell(case.name, 1)
        cell.batch, cell.num_classes = int(row["batch"]), int(row["identities"])
        cell.command = COMMAND
        cell.runs = [Run(DONE, rates=[row["images_per_s"]], peak_gib=row.get("peak_gib"))]
        if "fits" in row:
            cell.found = int(row["fits"])
    return record


def _row(results: Results, case: Case) -> dict[str, Any] | None:
    """What was measured for a case, if it was."""
    network = NETWORKS[case.network]
    setting: dict[str, Any] = {
        "network": case.network.split("_")[1],
        "rate": 0.1 if case.mode == "partial_fc" else 1.0,
        "dataset": network.dataset,
    }
    if case.searches_identities:
        return _found(results, **setting, precision="fp16", what="identities", batch=64)
    setting |= {"precision": "float32", "identities": network.num_classes}
    if case.batch == MAX:
        return _found(results, **setting, what="batch")
    setting |= {"batch": case.batch, "who": "facescale", "way": results.usual}
    return results.first("step", **setting)


def _found(results: Results, **wanted: Any) -> dict[str, Any] | None:
    return next((row for row in results.rows("memory_all", **wanted) if row["fits"]), None)


def gpu_tables(results: Results) -> list[Table]:
    """A table for each network and data set, in the report's form, and the most identities."""
    record = record_of(results)
    return [*(_throughput(record, name) for name in NETWORKS), _identities(results, record)]


def _throughput(record: Record, network: str) -> Table:
    columns = ["mode", "node_num", "gpu_num_per_node", "batch_size_per_device"]
    table = Table(
        f"{NETWORKS[network].title}, FP32, 1 device",
        [*columns, f"{THIS}, samples/s", "memory, GiB"]
        + [f"{PUBLISHED}{name}, samples/s" for name in ("OneFlow", "MXNet")],
    )
    for case in MATRIX:
        if case.network != network or case.searches_identities:
            continue
        published = THROUGHPUT[case.name]
        cell = record.cells.get(f"{case.name} on 1")
        batch = f"max ({cell.batch})" if cell and case.batch == MAX else str(case.batch)
        mode = MODES[case.mode][0].replace(", sample rate", ",")
        ours = [NOT_MEASURED, ""]
        if cell is not None and cell.rate is not None:
            ours = [f"{cell.rate:.2f}", "" if cell.peak_gib is None else f"{cell.peak_gib:.2f}"]
        theirs = [str(rates[ONE]) for rates in (published.oneflow, published.mxnet)]
        if case.batch == MAX:
            batches = (published.oneflow_batch, published.mxnet_batch)
            theirs = [f"{t} (batch {b or '?'})" for t, b in zip(theirs, batches, strict=True)]
        table.rows.append([mode, "1", "1", batch, *ours, *theirs])
    table.notes = [
        f"Published: {HARDWARE}, one of them. With one device, data and model parallelism are the "
        "same work, which was measured once. Medians of at least 5 steps here; the published "
        "figures are medians of 5 runs of 100 steps."
    ]
    return table


def _identities(results: Results, record: Record) -> Table:
    table = Table(
        "Max num_classes: R100, FP16, Partial FC 0.1, batch 64, 1 device",
        ["system", "memory of the device", "num_classes"],
    )
    for phase in ("memory_all", "memory_1", "memory_2") if results.on_card else ():
        wanted = {"network": "r100", "rate": 0.1, "dataset": "emore", "what": "identities"}
        for row in results.rows(phase, **wanted, precision="fp16", batch=64):
            memory = f"{row['memory'] / 2**30:.1f} GiB"
            table.rows.append([f"{THIS}, {results.device}", memory, f"{row['fits']:,}"])
    if not table.rows:
        table.rows.append([THIS, "", NOT_MEASURED])
    for entry in MOST_IDENTITIES:
        if entry.devices == 1:
            named = [f"{PUBLISHED}{entry.system}", f"V100, {entry.card_gib} GB"]
            table.rows.append([*named, f"{entry.identities:,}"])
    return table
