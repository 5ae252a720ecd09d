"""Inference with a trained network, compared with plain torch and onnxruntime."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from facescale import backbones
from facescale.acceleration.folding import inference_copy
from facescale.backbones import Backbone
from facescale.models.onnx import INPUT, MEAN, STD, export_onnx, open_session
from facescale.timing.interleave import Case, Contender, Prepare
from facescale.timing.steps import PROCESS, flop, pixels

IMAGE = 24 << 20  # upper bound of the bytes for the activations of an image
TURN = 16  # minimum number of images per turn of a contender


def inference(
    network: str, batch: int = 16, *, name: str = "inference", device: str = "cpu"
) -> Case:
    """Pixels to embeddings, float32; onnxruntime gets normalised pixels, and only on a CPU."""
    calls = -(-TURN // batch)
    with torch.device("meta"):
        weights = sum(p.nbytes for p in backbones.build(network).parameters())

    def contender(title: str, build: Callable[[str, int, int, str], Prepare]) -> Contender:
        memory = PROCESS + 4.0 * weights + batch * IMAGE
        return Contender(title, partial(build, network, batch, calls, device), memory)

    return Case(
        name=name,
        title=f"embedding with {network}, batch {batch}, {calls} in a row",
        contenders=(
            contender("facescale", _own).tuned(),
            *contender("torch", _torch).both(device),
            *([contender("onnxruntime", _onnxruntime)] if device == "cpu" else []),
        ),
        samples=calls * batch,
        flop=flop(network) / 3 * calls * batch,
        device=device,
    )


def _own(network: str, batch: int, calls: int, device: str) -> Prepare:
    model = inference_copy(trained(network)).to(device)
    return _turns(_forward(model, pixels(batch).to(device)), calls)


def _torch(network: str, batch: int, calls: int, device: str) -> Prepare:
    model = trained(network).to(device)
    return _turns(_forward(model, pixels(batch).float().contiguous().to(device)), calls)


def _forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return model(images)

    return call


def _onnxruntime(network: str, batch: int, calls: int, device: str) -> Prepare:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(trained(network), path)
        session = open_session(path)
    images = {INPUT: ((pixels(batch).float() - MEAN) / STD).contiguous().numpy()}
    return _turns(partial(session.run, None, images), calls)


def _turns(call: Callable[[], object], calls: int) -> Prepare:
    """An untimed turn before each: threads of the contender before still spin, caches are cold."""

    def turn() -> object:
        return [call() for _ in range(calls)][-1]

    def prepare() -> Callable[[], object]:
        turn()
        return turn

    return prepare


def trained(network: str) -> Backbone:
    """A network in eval mode with running statistics that fit its weights, so nothing overflows."""
    backbone = backbones.build(network, generator=torch.Generator().manual_seed(0))
    norms = [m for m in backbone.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become those of the next batch
    with torch.no_grad():
        backbone.train()(pixels(4))
    return backbone.eval()
