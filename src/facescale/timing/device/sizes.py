"""How large the work of each phase is: on a GPU, on a CPU, and for a test."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all phases.

    Attributes:
        copy: Numbers (float32) of the copy that measures memory.
        table: Rows of 512 numbers from which random ones are gathered.
        product: Side of the square product.
        precisions: Of products, networks and steps, the most telling first.
        checked: Rows and samples of the checks against float64.
        heads: Identities and sample rate.
        head_batch: Samples of the head's steps.
        networks: Of the backbone alone; the first one is that of the full step, too.
        light: Networks that may be bound by their host.
        batches: Samples, the most telling first.
        identities: By data set.
        caps: GiB of memory that a device is cut down to.
        drawn: Rows that are drawn at most in the search for the most identities.
        seconds: Of timed calls of one thing.
        report_batch: Samples in the published report's rows, for its first and its light network.
    """

    copy: int
    table: int
    product: int
    precisions: tuple[str, ...]
    checked: tuple[int, int]
    heads: tuple[tuple[int, float], ...]
    head_batch: int
    networks: tuple[str, ...]
    light: tuple[str, ...]
    batches: tuple[int, ...]
    identities: dict[str, int] = field(default_factory=dict)
    caps: tuple[float, ...]
    drawn: int
    seconds: float
    report_batch: tuple[int, int]


SIZES = {
    "gpu": Sizes(
        copy=1 << 29,
        table=2_000_000,
        product=8192,
        precisions=("bf16", "tf32", "fp16", "float32"),
        checked=(3001, 128),
        heads=((360_232, 0.1), (85_742, 1.0), (2_000_000, 0.1), (360_232, 1.0)),
        head_batch=128,
        networks=("r100", "mbf", "r50"),
        light=("mbf", "y1"),
        batches=(256, 128, 64),
        identities={"glint360k": 360_232, "emore": 85_742},
        caps=(16.0, 32.0),
        drawn=1_000_000,
        seconds=1.0,
        report_batch=(64, 256),
    ),
    "cpu": Sizes(
        copy=1 << 24,
        table=100_000,
        product=1024,
        precisions=("float32",),
        checked=(301, 32),
        heads=((36_023, 0.1), (8_574, 1.0), (200_000, 0.1), (36_023, 1.0)),
        head_batch=32,
        networks=("mbf",),
        light=("y1",),
        batches=(8, 4),
        identities={"emore": 85_742},
        caps=(2.0, 3.0),
        drawn=20_000,
        seconds=0.5,
        report_batch=(8, 16),
    ),
    "tiny": Sizes(
        copy=1 << 16,
        table=1000,
        product=64,
        precisions=("float32",),
        checked=(37, 5),
        heads=((500, 0.1), (200, 1.0)),
        head_batch=4,
        networks=("r18_half",),
        light=("y1",),
        batches=(2,),
        identities={"emore": 300},
        caps=(1.25,),
        drawn=100,
        seconds=0.0,
        report_batch=(2, 2),
    ),
}
