"""IR networks of AdaFace, CVLface and face.evoLVe become IResNets with the same answers."""

import math
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from test_mxnet import Array, Shape, error, golden, weights
from torch import Tensor
from torch.nn import functional

from facescale.cli import main
from facescale.models.adaface import with_our_names
from facescale.models.weights import load_backbone, momenta_with_our_names

TOLERANCE = 1e-5
STAGES = (64, 64, 64, 128, 128, 256, 256, 512, 512)
"""Channels of the stem and of the units of IR-18."""


def adaface_value(name: str, shape: Shape, random: np.random.Generator) -> Array:
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape)
    if name.endswith(("running_mean", "bias", "pos_embed", "mask_token")):
        return random.standard_normal(shape) * 0.1
    if name.endswith("res_layer.5.weight"):
        return random.uniform(0.1, 0.3, shape)
    if len(shape) == 1:
        return random.uniform(0.5, 1.5, shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape)
    return random.standard_normal(shape) * math.sqrt(1 / math.prod(shape[1:]))


@pytest.mark.parametrize(
    ("name", "ours"),
    [("ir_18", "r18"), pytest.param("ir_101", "r100", marks=pytest.mark.slow)],
)
def test_adafaces_weights_give_adafaces_embeddings(tmp_path: Path, name: str, ours: str) -> None:
    answers = golden(f"adaface_{name}")
    state = weights(answers["state_dict"], answers["seed"], adaface_value)
    tensors = {f"model.{key}": torch.from_numpy(array) for key, array in state}
    # as Lightning saves it, the head beside the network
    torch.save({"state_dict": {**tensors, "head.t": torch.zeros(1)}}, tmp_path / "adaface.ckpt")
    backbone = load_backbone(tmp_path / "adaface.ckpt")
    assert backbone.name == ours
    assert error(backbone, answers) < TOLERANCE


IR_50 = (64, *(64,) * 3, *(128,) * 4, *(256,) * 14, *(512,) * 3)


@lru_cache(maxsize=2)
def ir_18(
    evolve: bool, stages: tuple[int, ...] = STAGES, squeeze: str | None = None
) -> dict[str, Tensor]:
    """The shapes of IR-18: AdaFace's, or with face.evoLVe's blocks; or those of other `stages`.

    `squeeze` is what a squeeze-and-excitation block is called.
    """
    shapes: dict[str, Shape] = {"input_layer.0.weight": (64, 3, 3, 3)}

    def norm(name: str, channels: int, affine: bool = True) -> None:
        for field in ("weight", "bias") * affine + ("running_mean", "running_var"):
            shapes[f"{name}.{field}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("input_layer.1", 64)
    shapes["input_layer.2.weight"] = (64,)
    for index, (inner, outer) in enumerate(pairwise(stages)):
        name = f"body.{index}.res_layer"
        norm(f"{name}.0", inner)
        shapes[f"{name}.1.weight"] = (outer, inner, 3, 3)
        if not evolve:
            norm(f"{name}.2", outer)
        last = 2 if evolve else 3
        shapes[f"{name}.{last}.weight"] = (outer,)
        shapes[f"{name}.{last + 1}.weight"] = (outer, outer, 3, 3)
        norm(f"{name}.{last + 2}", outer)
        if squeeze:
            shapes[f"{name}.{squeeze}.fc1.weight"] = (outer // 16, outer, 1, 1)
            shapes[f"{name}.{squeeze}.fc2.weight"] = (outer, outer // 16, 1, 1)
        if inner != outer:
            shapes[f"body.{index}.shortcut_layer.0.weight"] = (outer, inner, 1, 1)
            norm(f"body.{index}.shortcut_layer.1", outer)
    norm("output_layer.0", 512)
    shapes |= {"output_layer.3.weight": (512, 25088), "output_layer.3.bias": (512,)}
    norm("output_layer.4", 512, affine=evolve)
    layout = [(name, list(shape)) for name, shape in shapes.items()]
    return {name: torch.from_numpy(array) for name, array in weights(layout, 3, adaface_value)}


def their_forward(
    state: dict[str, Tensor], x: Tensor, stages: tuple[int, ...] = STAGES, squeeze: str = ""
) -> Tensor:
    """Their network in eval mode, layer by layer, on normalised images in their order."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(
            x, mean, variance, state.get(f"{name}.weight"), state.get(f"{name}.bias")
        )

    x = functional.conv2d(x, state["input_layer.0.weight"], padding=1)
    x = functional.prelu(norm("input_layer.1", x), state["input_layer.2.weight"])
    for index, (inner, outer) in enumerate(pairwise(stages)):
        name, stride = f"body.{index}", 2 if inner != outer or not index else 1
        shortcut = functional.max_pool2d(x, 1, stride)
        if f"{name}.shortcut_layer.0.weight" in state:
            conv = state[f"{name}.shortcut_layer.0.weight"]
            shortcut = norm(f"{name}.shortcut_layer.1", functional.conv2d(x, conv, stride=stride))
        name = f"{name}.res_layer"
        y = functional.conv2d(norm(f"{name}.0", x), state[f"{name}.1.weight"], padding=1)
        last = 2
        if f"{name}.5.weight" in state:
            y, last = norm(f"{name}.2", y), 3
        y = functional.prelu(y, state[f"{name}.{last}.weight"])
        y = functional.conv2d(y, state[f"{name}.{last + 1}.weight"], stride=stride, padding=1)
        y = norm(f"{name}.{last + 2}", y)
        if squeeze:
            scale = functional.conv2d(y.mean((2, 3), True), state[f"{name}.{squeeze}.fc1.weight"])
            scale = functional.conv2d(scale.relu(), state[f"{name}.{squeeze}.fc2.weight"])
            y = y * scale.sigmoid()
        x = y + shortcut
    x = norm("output_layer.0", x).flatten(1)
    x = functional.linear(x, state["output_layer.3.weight"], state["output_layer.3.bias"])
    return norm("output_layer.4", x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("evolve", "prefix", "file", "rgb"),
    [
        (True, "", "evolve.pth", True),
        (False, "net.", "cvlface.pt", True),
        (False, "", "adaface.pt", False),
    ],
)
def test_blocks_and_channels_are_those_of_the_project(
    tmp_path: Path, evolve: bool, prefix: str, file: str, rgb: bool
) -> None:
    state = ir_18(evolve)
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / file)
    pixels = torch.randint(256, (1, 3, 112, 112), generator=torch.Generator().manual_seed(1))
    image = (pixels.double() - 127.5) / 127.5
    exact = {name: value.double() for name, value in state.items()}
    expected = their_forward(exact, image if rgb else image.flip(1))
    backbone = load_backbone(tmp_path / file).double()
    assert backbone.name == "r18"
    assert (backbone(pixels) - expected).abs().max() < 1e-6 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(("evolve", "squeeze"), [(True, "5"), (False, "se_block")])
def test_squeezed_blocks_become_ir_se_50(tmp_path: Path, evolve: bool, squeeze: str) -> None:
    state = ir_18(evolve, IR_50, squeeze)
    torch.save(state, tmp_path / "ir_se_50.pth")
    pixels = torch.randint(256, (1, 3, 112, 112), generator=torch.Generator().manual_seed(1))
    image = (pixels.double() - 127.5) / 127.5
    exact = {name: value.double() for name, value in state.items()}
    expected = their_forward(exact, image if evolve else image.flip(1), IR_50, squeeze)
    backbone = load_backbone(tmp_path / "ir_se_50.pth").double()
    assert backbone.name == "ir_se_50"
    assert (backbone(pixels) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_blocks_that_iresnet_has_not_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squeezed = {"body.0.res_layer.se_block.fc1.weight": torch.ones(4, 64, 1, 1)}
    torch.save(ir_18(False) | squeezed, tmp_path / "x.ckpt")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "x.ckpt"), str(tmp_path / "x.onnx")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "does not say which network it holds" in said


def test_momenta_are_converted_as_the_weights_are_and_none_is_added() -> None:
    theirs = ir_18(False)
    frozen = "body.2.res_layer.1.weight"  # from its shape the stage is known
    momenta = {
        f"module.{name}": value + 1.0
        for name, value in theirs.items()
        if "running" not in name and "num_batches" not in name and name != frozen
    }
    weights = {f"module.{name}": value for name, value in theirs.items()}
    ours, converted = with_our_names(theirs, rgb=False), momenta_with_our_names(momenta, weights)
    assert len(converted) == len(momenta)
    assert "layer2.0.conv1.weight" not in converted
    assert all(torch.equal(value, ours[name] + 1.0) for name, value in converted.items())


def test_shapes_from_a_stranger_are_left_to_be_refused() -> None:
    """No error here, and no memory for an identity of a size that a file says."""
    wrong = {
        "input_layer.0.weight": torch.ones(3),
        "body.0.res_layer.1.weight": torch.ones(()),
        "body.0.res_layer.3.weight": torch.ones(1).expand(1 << 40),
        "body.0.res_layer.5.weight": torch.ones(2),
        "output_layer": torch.ones(2),
    }
    ours = with_our_names(wrong, rgb=False)
    assert "conv1.weight" in ours
    assert not any("downsample" in name for name in ours)
