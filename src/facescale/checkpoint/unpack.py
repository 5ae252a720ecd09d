"""A checkpoint as plain files: the backbone, and the class centres in pieces."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from facescale.backbones import Backbone
from facescale.checkpoint import record, tensors
from facescale.evaluation.embedded import Embedded, unit_rows
from facescale.files import write_whole
from facescale.head.startvalues import start_values
from facescale.models.tensorfile import encode
from facescale.models.weights import build_checked, save_backbone

ROWS = 100_000
PIECE_IMAGES = 10_000


def load_backbone(checkpoint: Path) -> Backbone:
    """The backbone of a checkpoint, in eval mode: the average of its weights if there is one.

    Raises:
        OSError: A file is missing.
        ValueError: A file is damaged, or its tensors are not those of the network it names.
    """
    spec = record.read(checkpoint).run.backbone
    backbone = build_checked(spec, tensors.backbone_shapes(checkpoint), checkpoint)
    tensors.read_shared_(checkpoint, backbone)
    own = backbone.state_dict()
    for name, value in tensors.read_kept(checkpoint, ["average"]).items():
        target = own.get(name.removeprefix("average/"))
        if target is None or target.shape != value.shape:
            raise ValueError(f"{checkpoint}: {name:.100} does not belong to its backbone")
        target.copy_(value)
    return backbone.eval()


def unpack_backbone(checkpoint: Path, output: Path) -> Path:
    """Write `output/model.safetensors`, from which `models.weights.load_backbone` rebuilds it."""
    path = output / "model.safetensors"
    save_backbone(path, load_backbone(checkpoint))
    return path


def unpack_centres(
    checkpoint: Path, output: Path, rows: int = ROWS, images: Embedded | None = None
) -> Iterator[Path]:
    """Write the class centres, `rows` classes a file; yields each path when it is written.

    With embeddings of the training `images`, the dominant centre of each class alone.

    `centres-00001-of-00004.safetensors` holds "centres" (k * subcentres, dim), not normalised, and
    says in its metadata which class is its first. At most two pieces are in memory at a time.

    Raises:
        ValueError: `rows` is below 1, or the images have other labels or another dimension.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    saved = record.read(checkpoint)
    num_classes, seed, copies = saved.num_classes, saved.run.seed, saved.run.subcentres
    if images is not None and (highest := int(images.labels.max())) >= num_classes:
        raise ValueError(
            f"the images have labels up to {highest}, but the run has {num_classes} classes; embed "
            "the images that it was trained with"
        )
    starts = range(0, num_classes, rows)
    for number, start in enumerate(starts, 1):
        part = range(start * copies, min(start + rows, num_classes) * copies)
        weight = tensors.read_centres(checkpoint, part)[:, 0].contiguous()
        fresh = (weight == 0).all(dim=1).nonzero().flatten()  # never read by the run
        weight[fresh] = start_values(seed, fresh + part.start, weight.shape[1]).to(weight)
        if images is not None:
            weight = dominant(weight.unflatten(0, (-1, copies)), images, start)
        path = output / f"centres-{number:05d}-of-{len(starts):05d}.safetensors"
        metadata = {"first_class": str(start), "num_classes": str(num_classes)}
        metadata |= {"subcentres": str(copies)} if copies > 1 and images is None else {}
        write_whole(path, encode({"centres": weight}, metadata))
        yield path


def dominant(centres: Tensor, images: Embedded, first_class: int) -> Tensor:
    """The centre of each class to which most of its images are nearest, (classes, dim).

    The first of those that are equal; the first one of a class without an image. Source: Deng et
    al., Sub-center ArcFace, ECCV 2020, section 3.4.

    Args:
        centres: (classes, subcentres, dim), not normalised.
        images: Embeddings with labels, of all classes.
        first_class: Label of the first of `centres`.

    Raises:
        ValueError: The embeddings have another dimension, or one has no direction.
    """
    classes, copies, dim = centres.shape
    if images.embeddings.shape[1] != dim:
        raise ValueError(
            f"the images have embeddings of {images.embeddings.shape[1]} numbers, the class "
            f"centres {dim}; embed them with this model"
        )
    wins = torch.zeros(classes, copies)
    here = (images.labels >= first_class) & (images.labels < first_class + classes)
    unit = normalize(centres.float(), dim=2)
    for piece in np.array_split(here.nonzero()[0], max(1, here.sum() // PIECE_IMAGES)):
        label = torch.from_numpy(images.labels[piece] - first_class).long()
        cosine = (unit[label] @ unit_rows(images.embeddings[piece])[:, :, None])[:, :, 0]
        wins.index_put_((label, cosine.argmax(dim=1)), torch.ones(len(label)), accumulate=True)
    return centres[torch.arange(classes), wins.argmax(dim=1)].contiguous()
