"""A checkpoint as plain files: the backbone, and the class centres in pieces."""

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file

from facescale import backbones
from facescale.checkpoint import tensors
from facescale.checkpoint.folder import read_numbers
from facescale.head.centres import start_values
from facescale.models.weights import save_backbone

ROWS = 100_000


def unpack_backbone(checkpoint: Path, output: Path) -> Path:
    """Write `output/model.safetensors`, from which `load_backbone` makes the network again."""
    backbone = backbones.build(**read_numbers(checkpoint)["backbone"])
    tensors.read_backbone_(checkpoint, backbone)
    path = output / "model.safetensors"
    save_backbone(path, backbone)
    return path


def unpack_centres(checkpoint: Path, output: Path, rows: int = ROWS) -> Iterator[Path]:
    """Write the class centres, `rows` classes a file; yields each path when it is written.

    `centres-00001-of-00004.safetensors` holds "centres" (k, dim), not normalised, and says in its
    metadata which class is its first. No more than two pieces are in memory at a time.

    Raises:
        ValueError: `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    num_classes = tensors.num_centres(checkpoint)
    seed = read_numbers(checkpoint).get("seed", 0)
    starts = range(0, num_classes, rows)
    for number, start in enumerate(starts, 1):
        classes = range(start, min(start + rows, num_classes))
        weight = tensors.read_centres(checkpoint, classes)[:, 0].contiguous()
        fresh = (weight == 0).all(dim=1).nonzero().flatten()  # nobody has touched them yet
        weight[fresh] = start_values(seed, fresh + start, weight.shape[1]).to(weight)
        path = output / f"centres-{number:05d}-of-{len(starts):05d}.safetensors"
        metadata = {"first_class": str(start), "num_classes": str(num_classes)}
        save_file({"centres": weight}, path, metadata=metadata)
        yield path
