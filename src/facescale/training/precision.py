"""The arithmetic of a backbone's trunk: which precision a run takes, and how torch is told."""

from dataclasses import replace
from typing import Any, Literal

import torch

from facescale.config import Config

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float64": torch.float64,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def settled(config: Config, device_type: str) -> Config:
    """The config with `train.precision: auto` replaced by what the hardware multiplies fastest.

    That is bf16 where the hardware has bfloat16 products, else float32.
    """
    if config.train.precision != "auto":
        return config
    taken: Literal["bf16", "float32"] = "bf16" if has_bfloat16(device_type) else "float32"
    return replace(config, train=replace(config.train, precision=taken))


def has_bfloat16(device_type: str) -> bool:
    """Whether devices of this type multiply bfloat16 in hardware.

    Every current NVIDIA GPU does; without a GPU, CUDA is taken for one. A CPU does with AVX-512
    BF16, AMX or Arm's BF16 instructions.
    """
    if device_type == "cuda":
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(False)
    if device_type != "cpu":
        return False
    # torch.cpu.get_capabilities is newer than torch 2.11
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
    supported: bool = any(known.get(name) for name in names)
    return supported or bool(torch.cpu._is_avx512_bf16_supported())


def precision_note(asked: Config, taken: Config, device_type: str) -> str | None:
    """What to say of the precision at the start of a run; None if nothing."""
    precision = taken.train.precision
    if asked.train.precision == "auto":
        has = "has" if precision == "bf16" else "lacks"
        return (
            f"train.precision auto: {precision}, since this {device_type} {has} bfloat16 products"
        )
    if precision == "bf16" and not has_bfloat16(device_type):
        return (
            f"train.precision is bf16, which this {device_type} emulates slowly; float32 is "
            "faster here, and auto chooses by the hardware"
        )
    if precision == "fp16" and device_type == "cpu":
        return "train.precision is fp16, which a CPU emulates slowly; float32 is faster here"
    return None


def trunk_autocast(device_type: str, precision: str, *, cache: bool = True) -> torch.autocast:
    """The arithmetic of a backbone's trunk in `precision`, one of `PRECISIONS`.

    Without `cache` a weight is rounded at each use, and not once inside the block.
    """
    dtype = PRECISIONS[precision]
    return torch.autocast(device_type, dtype, enabled=dtype.itemsize < 4, cache_enabled=cache)


def round_convolutions(to_tf32: bool) -> None:
    """Say whether CUDA's float32 convolutions may round their factors; torch lets them by default.

    Matrix products, which are the neck's and the head's, keep float32: that is torch's default.
    """
    torch.backends.cudnn.allow_tf32 = to_tf32  # inductor reads this name, not the newer ones
