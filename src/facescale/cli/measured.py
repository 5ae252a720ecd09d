"""Which device a benchmark measures."""

from facescale.cli.terminal import say


def measured_device(chosen: str) -> str:
    """Resolve "cpu", "cuda" or "auto" to a device type; say so where "auto" found no CUDA device.

    Raises:
        ValueError: "cuda" was asked for and torch finds no CUDA device.
    """
    import torch

    from facescale.distributed import device_type

    found = device_type(chosen)
    if found == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch sees no CUDA device; use --device cpu")
    if chosen == "auto" and found == "cpu":
        say("no CUDA device: the CPU is measured")
    return found
