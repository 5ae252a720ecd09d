"""Launches of all kernels at real sizes, for `resources` to compile.

The tables of docs/gpu_kernels.md: python -m facescale.kernels.cuda.catalogue
"""

import torch

from facescale.kernels.cuda import head, norm
from facescale.kernels.cuda.draw import draw_rows
from facescale.kernels.cuda.norm_parameters import Parameters
from facescale.kernels.cuda.operands import FORMATS, Drawn, Rates
from facescale.kernels.cuda.resources import Launch, compile_launch, launches
from facescale.kernels.cuda.start import start_
from facescale.kernels.cuda.tiles import TILES, Precision, assumed
from facescale.random import Permutation, key

STORED = {name: dtype for dtype, name in FORMATS.items()}
CAPABILITIES = (80, 90)
ROWS, SAMPLES, DIM = 36_151, 128, 512  # 360,232 identities at 0.1


def head_launches(
    row_format: str,
    precision: Precision,
    *,
    rows: int = ROWS,
    samples: int = SAMPLES,
    dim: int = DIM,
    parts: int = 2,
    gather: bool = True,
    capability: int = 90,
) -> list[Launch]:
    """What a step of the head launches, by one rank and by copies of a shard."""
    width = dim + 4 * (row_format == "int8")
    with torch.device("meta"), assumed(capability), launches() as seen:
        table = torch.empty(10 * rows, parts, width, dtype=STORED[row_format])
        index = torch.empty(rows, dtype=torch.int64) if gather else None
        drawn = Drawn(table, dim, rows, index)
        batch = torch.empty(
            samples, dim, dtype=torch.bfloat16 if precision == "bf16" else torch.float32
        )
        own = torch.empty(samples, dtype=torch.int64)
        to_own, logits = torch.empty(samples), torch.empty(rows, samples)
        factor, bad = torch.empty(()), torch.empty(1, dtype=torch.int32)
        rates = Rates(0.1, 0.9, 5e-4)
        draw_rows(own, rows, Permutation(10 * rows, key(0)))
        start_(drawn, (0, 0), 0, 0.01)
        seen_first = head.forward(drawn, batch, own, 64.0, precision, logits)
        head.logits_again_(drawn, batch, 64.0, precision, logits)
        radial = head.probability_(logits, seen_first.inverse, to_own, to_own, own, factor, 64.0)
        head.to_batch(drawn, logits, precision)
        head.update_(drawn, logits, batch, radial, bad, rates, precision)
        gradient = head.gradient(drawn, logits, batch, radial, precision)
        head.apply_(drawn, gradient, bad, rates)
    return seen


def norm_launches(dtype: torch.dtype, channels: int = 64, size: int = 112) -> list[Launch]:
    """What BatchNorm, PReLU and shortcut launch, for a batch of 64 images of `size` pixels."""
    with torch.device("meta"), launches() as seen:
        x = torch.empty(64, channels, size, size, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        values = torch.empty(channels)
        for slope in (values, None):
            parameters = Parameters(values, values, slope)
            norm.batch_norm(x, parameters, values, values, momentum=0.1, eps=1e-5, shortcut=x)
            norm.batch_norm_backward(x, x, parameters, values, values)
    return seen


def table(title: str, columns: dict[str, dict[int, list[Launch]]]) -> list[str]:
    """Lines of Markdown: each kernel's registers and shared memory.

    Args:
        title: Of the table.
        columns: For each, launches by the compute capability to compile them for.
    """
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    compared = [zip(*launched.values(), strict=True) for launched in columns.values()]
    for same in zip(*compared, strict=True):
        cells = [_name(same[0][0])]
        for launched, capabilities in zip(same, columns.values(), strict=True):
            uses = [compile_launch(*one) for one in zip(launched, capabilities, strict=True)]
            registers = " / ".join(str(use.registers) for use in uses)
            shared = " / ".join(f"{use.shared / 1024:.0f}" for use in uses)
            spills = sum(use.stack + use.local for use in uses)
            cells.append(f"{registers}, {shared} KB" + (f", spills {spills} B" if spills else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return list(dict.fromkeys(lines))


def _name(launch: Launch) -> str:
    """The kernel, and which of its ways."""
    ways = {
        "STATISTICS": {True: "", False: ", logits again"},
        "LEARN": {True: "", False: ", gradient out"},
        "ACT": {True: "", False: ", no PReLU"},
    }
    given = launch.arguments
    chosen = [str(names[given[way]]) for way, names in ways.items() if way in given]
    return str(launch.kernel.__name__).removesuffix("_kernel") + "".join(chosen)


def main() -> None:
    """Print the tables."""
    for row_format in STORED:
        columns = {
            str(way): {one: head_launches(row_format, way, capability=one) for one in CAPABILITIES}
            for way in TILES["forward"]
        }
        print("\n".join(table(f"rows in {row_format}", columns)), "\n")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    norms = {
        name: dict.fromkeys(CAPABILITIES, norm_launches(dtype)) for name, dtype in dtypes.items()
    }
    print("\n".join(table("BatchNorm", norms)))


if __name__ == "__main__":
    main()
