"""The backbone's passes as CUDA graphs: the host launches each as a whole, not kernel by kernel."""

import torch
from torch import nn

from facescale.backbones.backbone import IMAGE_SHAPE, Backbone
from facescale.backbones.convolutional import ConvolutionalBackbone
from facescale.config import Config, TrainConfig
from facescale.data.transforms import Augment
from facescale.training.precision import trunk_autocast
from facescale.training.recompute import recomputes

WARMUPS, WARMUPS_OF_DDP = 3, 11  # before a capture; torch asks for as many


def takes_graphs(config: Config, device_type: str, ranks: int, backbone: nn.Module) -> bool:
    """Whether the backbone's passes are to be CUDA graphs; by default where they are known to work.

    With several ranks they cost the overlap of backward pass and gradient sum, so they are asked
    for there.
    """
    train, asked = config.train, config.train.graphs
    if train.compile or why_not(train, device_type, ranks, backbone):
        return False
    if asked is None:
        frozen = config.optim.groups and config.optim.frozen_statistics
        return ranks == 1 and isinstance(backbone, ConvolutionalBackbone) and not frozen
    return asked


def why_not(
    train: TrainConfig, device_type: str, ranks: int, backbone: nn.Module | None = None
) -> str | None:
    """Why there can be no CUDA graphs in a run, or None where there can."""
    reasons = {
        "there is no CUDA device": device_type != "cuda",
        "train.micro_batch computes portions again": train.micro_batch is not None,
        "train.recompute computes blocks again": backbone is not None and recomputes(backbone),
        "train.sync_batchnorm waits for other ranks": train.sync_batchnorm and ranks > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def graphs_note(
    train: TrainConfig, device_type: str, ranks: int, backbone: nn.Module
) -> str | None:
    """What to say of it at the start of a run; None if nothing."""
    reason = why_not(train, device_type, ranks, backbone) if train.graphs else None
    return f"train.graphs is without effect: {reason}" if reason else None


def capture_(
    backbone: Backbone,
    config: Config,
    device: torch.device,
    ranks: int,
    augment: Augment,
    batch: tuple[int, torch.memory_format],
) -> None:
    """Make both passes of `backbone` CUDA graphs, where `takes_graphs` says so.

    Its `forward` replays them from then on, in training mode; all else is as before. Every batch
    must be alike. The passes that come before a capture change no running statistics in the end.

    Args:
        backbone: On `device`; without hooks.
        config: Of the run.
        device: Where the backbone is.
        ranks: Of the run.
        augment: What makes a batch for the backbone.
        batch: Samples and layout of a batch.
    """
    if not takes_graphs(config, device.type, ranks, backbone):
        return
    samples, layout = batch
    images = torch.zeros(samples, *IMAGE_SHAPE, dtype=torch.uint8, device=device)
    images = augment(images.contiguous(memory_format=layout), seed=0, position=0)
    training, warmups = backbone.training, WARMUPS if ranks == 1 else WARMUPS_OF_DDP
    kept = [buffer.clone() for buffer in backbone.buffers()]
    # Weights are read on the stream of the capture, and their gradients are made there.
    warn = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if warn is not None:
        warn(False)
    # A weight in the cache would be of the capture.
    with trunk_autocast(device.type, config.train.precision, cache=False):
        torch.cuda.make_graphed_callables(
            backbone.train(), (images,), num_warmup_iters=warmups, allow_unused_input=True
        )
    for buffer, value in zip(backbone.buffers(), kept, strict=True):
        buffer.copy_(value)
    backbone.train(training)
