"""Embed a set of pairs and verify it, with the images shared between the ranks."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facescale.data.pairs import PairSet
from facescale.evaluation.verification import (
    FOLDS,
    Floats,
    Verification,
    check_pairs,
    choose_folds,
    normalise,
    verify,
)

DecodeRange = Callable[[int, int], NDArray[np.uint8]]
Gather = Callable[[Tensor], Tensor]
log = logging.getLogger(__name__)


def alone(rows: Tensor) -> Tensor:
    """Gather for a world of one rank: the identity."""
    return rows


def verify_pairs(
    backbone: nn.Module,
    pairs: PairSet,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = alone,
    folds: int | None = None,
) -> Verification:
    """Embed the images of `pairs`, flip added, and verify them; every rank gets the same result.

    An image that is in several pairs is embedded once.
    Arguments as in `embed_images`; errors as in `verify`. Without `folds` there are 10, or as many
    as a small set can fill, with a warning in the log.
    """
    num_folds = choose_folds(pairs.same) if folds is None else folds
    check_pairs(pairs.same, num_folds)  # before minutes of embedding
    if folds is None and num_folds < FOLDS and rank == 0:
        log.warning(
            "%s: %d pairs fill %d folds only, not the usual %d; accuracy is a rough estimate",
            *(pairs.name, len(pairs.same), num_folds, FOLDS),
        )
    unit, xnorm = embed_pairs(backbone, pairs, True, batch_size, device, rank, world_size, gather)
    return replace(verify(unit[0::2], unit[1::2], pairs.same, num_folds), xnorm=xnorm)


def embed_pairs(
    backbone: nn.Module,
    pairs: PairSet,
    flip: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = alone,
) -> tuple[Floats, float]:
    """Unit embeddings (2n, dim) of all images, each embedded once, and the mean of their lengths.

    Arguments as in `embed_images`; ValueError where an embedding has no direction.
    """
    images, place = pairs.distinct()
    embeddings, norms = embed_images(
        backbone,
        lambda start, stop: pairs.decode(images[start:stop]),
        len(images),
        batch_size=batch_size,
        device=device,
        rank=rank,
        world_size=world_size,
        gather=gather,
        flip=flip,
    )
    unit = normalise(embeddings.cpu().numpy())[place]
    return unit, norms.cpu().numpy()[place].mean().item()


def embed_images(
    backbone: nn.Module,
    decode_range: DecodeRange,
    num_images: int,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = alone,
    flip: bool = True,
) -> tuple[Tensor, Tensor]:
    """Embed images as f(image) + f(mirrored image), each rank its share.

    The backbone runs in eval mode; afterwards its mode is restored.

    Args:
        backbone: From pixels (b, 3, height, width), uint8 RGB, to embeddings (b, dim).
        decode_range: Returns the images from a start to a stop as (k, height, width, 3), uint8 RGB;
            called in a thread, one batch ahead.
        num_images: Number of images of all ranks together.
        batch_size: Images per forward pass.
        device: Device of the backbone.
        rank: This rank.
        world_size: Number of ranks.
        gather: Concatenates the ranks' rows (n_r, columns) in rank order, on every rank; n_r may
            differ between ranks.
        flip: Add the embedding of the mirrored image; without, the norms are those of f alone.

    Returns:
        All embeddings (num_images, dim) in float32 on `device`, not normalised, and the mean
        length of f over each image and its mirror image, (num_images,): XNorm is their mean.
    """
    start, stop = (num_images * r // world_size for r in (rank, rank + 1))
    with evaluating(backbone), torch.inference_mode():
        # A rank without a share embeds one image and drops it, to know the number of columns.
        batches = decode_ahead(decode_range, start, max(stop, start + 1), batch_size)
        embed = _embed_both_ways if flip else _embed_one_way
        rows = [embed(backbone, batch.to(device)) for batch in batches]
    block = torch.cat(rows)[: stop - start]  # a plain tensor again: gloo refuses inference tensors
    gathered = gather(block)
    return gathered[:, :-1], gathered[:, -1]


def _embed_both_ways(backbone: nn.Module, images: Tensor) -> Tensor:
    """(b, dim + 1): the sum over image and mirror image, and their mean norm as the last column."""
    plain, mirrored = (backbone(batch).float() for batch in (images, images.flip(3)))
    norms = (plain.norm(dim=1, keepdim=True) + mirrored.norm(dim=1, keepdim=True)) / 2
    return torch.cat([plain + mirrored, norms], dim=1)


def _embed_one_way(backbone: nn.Module, images: Tensor) -> Tensor:
    """(b, dim + 1): the embeddings, and their norm as the last column."""
    rows = backbone(images).float()
    return torch.cat([rows, rows.norm(dim=1, keepdim=True)], dim=1)


def decode_ahead(
    decode_range: DecodeRange, start: int, stop: int, batch_size: int
) -> Iterator[Tensor]:
    """Batches (b, 3, height, width), uint8; the next one is decoded while one is in use."""

    def decode(begin: int) -> Tensor:
        images = decode_range(begin, min(begin + batch_size, stop))
        return torch.from_numpy(images).permute(0, 3, 1, 2)  # channels_last, as it was decoded

    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(max_workers=1) as decoder:
        for begin in range(start, stop, batch_size):
            waiting.append(decoder.submit(decode, begin))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        yield waiting.popleft().result()


@contextmanager
def evaluating(backbone: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; then every module's own mode again, frozen ones included."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
