"""Start values of class centres on a CUDA device, as a function of (key, class, column)."""

from facescale.kernels.cuda.operands import Drawn, signed
from facescale.kernels.cuda.start_kernel import start_kernel
from facescale.kernels.cuda.tiles import power_of_2, tile_for


def start_(drawn: Drawn, key: tuple[int, int], first_class: int, deviation: float) -> None:
    """Give rows that are all zero their start values, N(0, deviation) rounded to the nearest.

    Args:
        drawn: The rows.
        key: Two words of 32 bits that decide the numbers, with class and column.
        first_class: The class of row 0 of the table.
        deviation: The standard deviation.
    """
    if not drawn.count:
        return
    tile = tile_for("start", "tf32", drawn.table.device)
    table, scales, rows = drawn.pointers()
    start_kernel[(-(-drawn.count // tile.rows),)](
        table, scales, rows, drawn.first, drawn.count, *signed(key), first_class, deviation,
        **drawn.constants(), R=tile.rows, BD=power_of_2(drawn.dim), num_warps=tile.warps,
    )  # fmt: skip
