"""Published figures of others: the tables of the report, and later ones.

DLPerf, "InsightFace Deeplearning Framework Tests Report" (January 2021): OneFlow 0.3.4 and
MXNet 1.6.0, one node of 8 Tesla V100-SXM2-16GB, samples/s of all devices together.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

DEVICES = (1, 4, 8)
"""Numbers of devices in each throughput table, in this order."""
HARDWARE = "8 x V100-16GB"
OOM: Final = "OOM"

Rate = float | Literal["OOM"]


@dataclass(frozen=True)
class Published:
    """One table of the report: samples/s on 1, 4 and 8 devices, and its batch sizes."""

    oneflow: tuple[Rate, Rate, Rate]
    mxnet: tuple[Rate, Rate, Rate]
    oneflow_batch: int
    mxnet_batch: int | None
    """None if no batch fitted."""


_NO_MXNET: tuple[Rate, Rate, Rate] = (OOM, OOM, OOM)

# fmt: off
THROUGHPUT = MappingProxyType({
    # face_emore, R100, FP32
    "emore_r100/data_parallel/64": Published(
        (245.0, 923.23, 1836.8), (241.82, 655.56, 650.8), 64, 64),
    "emore_r100/data_parallel/max": Published(
        (252.76, 969.27, 1925.6), (288.0, 733.1, 749.42), 96, 96),
    "emore_r100/model_parallel/64": Published(
        (245.29, 938.83, 1854.15), (233.88, 651.44, 756.96), 64, 64),
    "emore_r100/model_parallel/max": Published(
        (245.92, 968.72, 1925.59), (242.2, 724.26, 821.06), 115, 96),
    "emore_r100/partial_fc/64": Published(
        (247.97, 946.54, 1864.31), (223.11, 799.19, 1586.09), 64, 64),
    "emore_r100/partial_fc/max": Published(
        (256.61, 990.82, 1962.76), (232.56, 852.4, 1644.42), 120, 104),
    # glint360k, R100, FP32
    "glint360k_r100/data_parallel/64": Published(
        (230.22, 847.71, 1688.62), _NO_MXNET, 64, 64),
    "glint360k_r100/data_parallel/max": Published(
        (229.94, 856.61, 1707.03), _NO_MXNET, 85, None),
    "glint360k_r100/model_parallel/64": Published(
        (230.33, 912.24, 1808.27), _NO_MXNET, 64, 64),
    "glint360k_r100/model_parallel/max": Published(
        (231.86, 925.85, 1844.66), _NO_MXNET, 100, None),
    "glint360k_r100/partial_fc/64": Published(
        (245.12, 945.44, 1858.57), (194.01, 730.29, 1359.2), 64, 64),
    "glint360k_r100/partial_fc/max": Published(
        (248.01, 973.63, 1933.88), (192.18, 811.34, 1493.51), 115, 96),
    # face_emore, Y1, FP32
    "emore_y1/data_parallel/256": Published(
        (1961.52, 7354.49, 14298.02), (786.94, 1055.88, 1031.1), 256, 256),
    "emore_y1/data_parallel/max": Published(
        (1969.66, 7511.53, 14756.03), (931.88, 1044.38, 1026.68), 350, 368),
    "emore_y1/model_parallel/256": Published(
        (1963.62, 7264.54, 14049.75), (984.2, 984.88, 1030.58), 256, 256),
    "emore_y1/model_parallel/max": Published(
        (1969.65, 7363.77, 14436.38), (974.26, 1017.78, 1038.6), 400, 352),
})
# fmt: on


@dataclass(frozen=True)
class MostIdentities:
    """A published largest number of class centres."""

    system: str
    devices: int
    card_gib: int
    identities: int
    setting: str
    source: str


_REPORT = ("FP16, batch 64, model parallel, Partial FC 0.1", "the report, Max num_classes")
MOST_IDENTITIES = (
    MostIdentities("OneFlow", 1, 16, 2_000_000, *_REPORT),
    MostIdentities("MXNet", 1, 16, 1_800_000, *_REPORT),
    MostIdentities("OneFlow", 8, 16, 13_500_000, *_REPORT),
    MostIdentities("MXNet", 8, 16, 12_000_000, *_REPORT),
    MostIdentities(
        "arcface_torch",
        8,
        32,
        29_000_000,
        "R50, FP16, batch 128, Partial FC 0.1",
        "insightface docs/speed_benchmark.md, code of 2021",
    ),
)
