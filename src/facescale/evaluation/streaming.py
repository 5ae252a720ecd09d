"""Embed any number of images as a stream of batches, none of which is kept."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facescale.distributed import Group
from facescale.evaluation.embedding import DecodeRange, decode_ahead, evaluating

Part = TypeVar("Part")
Watch = Callable[[Iterator[Tensor], int], Iterator[Tensor]]


def unwatched(parts: Iterator[Part], total: int) -> Iterator[Part]:
    """Pass on the parts of a work as they are."""
    return parts


def embed_stream(
    network: nn.Module,
    decode_range: DecodeRange,
    start: int,
    stop: int,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    flip: bool = True,
) -> Iterator[Tensor]:
    """Embed images `start` to `stop` and yield them batch by batch.

    Args:
        network: From pixels (b, 3, height, width), uint8 RGB, to embeddings (b, dim). It runs in
            eval mode and is left in the mode it was found in.
        decode_range: Gives the images from a start to a stop as (k, height, width, 3), uint8 RGB;
            called in a thread, one batch ahead.
        start: The first image.
        stop: One more than the last image.
        batch_size: Images per forward pass.
        device: Where the network lies.
        flip: Add the embedding of the mirrored image.

    Yields:
        (b, dim) in float32 on `device`, not normalised, in the order of the images.
    """
    if stop <= start:
        return
    with evaluating(network):
        for batch in decode_ahead(decode_range, start, stop, batch_size):
            images = batch.to(device)
            with torch.inference_mode():  # not around the yield, which would put it on the caller
                rows = network(images).float()
                rows = rows + network(images.flip(3)).float() if flip else rows
            yield rows.clone()  # a plain tensor again: gloo refuses inference tensors


def embed_in_turns(
    network: nn.Module,
    decode_range: DecodeRange,
    num_images: int,
    world: Group,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    flip: bool = True,
) -> Iterator[Tensor]:
    """Embed all images, each rank a batch in turn, and yield them on every rank in their order.

    Arguments as in `embed_stream`; yields up to `batch_size` times the ranks rows, (n, dim).
    """
    turn = batch_size * world.size
    rounds = -(-num_images // turn)
    starts = range(world.rank * batch_size, num_images, turn)
    mine = sum(min(batch_size, num_images - start) for start in starts)

    def decode_own(start: int, stop: int) -> NDArray[np.uint8]:
        first = starts[start // batch_size]
        return decode_range(first, first + stop - start)

    batches = embed_stream(network, decode_own, 0, mine, batch_size, device, flip)
    first = next(batches, None)
    dim = agreed_dim(first, device, world)
    yield world.gather_rows(torch.zeros(0, dim, device=device) if first is None else first)
    for _ in range(rounds - 1):
        batch = next(batches, None)
        yield world.gather_rows(torch.zeros(0, dim, device=device) if batch is None else batch)


def agreed_dim(rows: Tensor | None, device: torch.device | str, world: Group) -> int:
    """Length of an embedding, also for a rank that has none."""
    dim = torch.tensor([0 if rows is None else rows.shape[1]], device=device)
    return int(world.all_gather(dim).max())
