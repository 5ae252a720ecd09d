"""Embed any number of images in batches that are used and forgotten."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from facescale.evaluation.embedding import DecodeRange, _decode_ahead, _evaluating

Watch = Callable[[Iterator[Tensor], int], Iterator[Tensor]]


def unwatched(batches: Iterator[Tensor], total: int) -> Iterator[Tensor]:
    """Pass batches on as they are."""
    return batches


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
    with _evaluating(network), torch.inference_mode():
        for batch in _decode_ahead(decode_range, start, stop, batch_size):
            images = batch.to(device)
            rows = network(images).float()
            yield rows + network(images.flip(3)).float() if flip else rows
