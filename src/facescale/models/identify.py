"""Which network a file of weights holds, found from the names and shapes of its tensors."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import torch

from facescale.backbones import NAMES, Backbone, build
from facescale.models.names import Shapes, differences, num_differences, shapes_of

Naming = Callable[[Backbone], Shapes]
"""The shapes of a network's tensors under the names that a file has for them."""

_GDC = ("features.layers.0.layers.0.weight", "arg:conv_6dw7_7_conv2d_weight")
_LINEAR = ("fc.weight", "features.layers.2.weight", "arg:pre_fc1_weight")
_BIAS = ("features.layers.2.bias", "arg:pre_fc1_bias")
_FEATURES = ("bn2.weight", "arg:bn1_gamma")
_VIT = "feature.2.weight"
_OPTIONS: dict[str, type | UnionType] = {
    "name": str,
    "embedding_dim": int | None,
    "neck": str | None,
    "family": str | None,
    "dropout": float | int | None,
    "image_size": int,
}
"""The arguments of `build` that a spec may have."""
_IMAGE_SIZES = {7: 112, 4: 56, 2: 28}
"""By the size of the features that the neck takes."""


def own_names(backbone: Backbone) -> Shapes:
    """The naming of this package and of arcface_torch."""
    return shapes_of(backbone.state_dict())


def identify(
    shapes: Shapes,
    path: Path,
    name: str | None = None,
    family: str | None = None,
    naming: Naming = own_names,
) -> dict[str, Any]:
    """The spec of the network that has tensors of these names and shapes.

    The shapes do not tell the family of most networks: arcface_torch's is taken where none is
    given, except for neck GDC with a bias, which MXNet's alone has.

    Raises:
        ValueError: It is none of the known ones, or not that of `name`.
    """
    around = _neck_of(shapes)
    if family is None:
        gdc_with_bias = around.get("neck") == "GDC" and any(bias in shapes for bias in _BIAS)
        around["family"] = "mxnet" if gdc_with_bias else "arcface_torch"
    else:
        around["family"] = family
    nearest = (len(shapes), "")
    for candidate in NAMES if name is None else [name]:
        # Networks that were registered from outside may have no neck and no family
        for choices in (around, {}) if family is None else (around,):
            spec = {"name": candidate, **choices}
            try:
                expected = naming(skeleton(spec))
                wrong = differences(expected, shapes)
                said = f"; the nearest is {candidate}, where {wrong}"
                nearest = min(nearest, (num_differences(expected, shapes), said))
            except ValueError as error:
                wrong = str(error)
            if not wrong:
                return spec
    if name is not None:
        raise ValueError(f"{path} holds weights of another network than {name}: {wrong}")
    raise ValueError(
        f"{path} does not say which network it holds, and its tensors are those of none that is "
        f"known{nearest[1]}. Name the network: --backbone, one of {', '.join(NAMES)}"
    )


def _neck_of(shapes: Shapes) -> dict[str, Any]:
    """Neck, embedding_dim and image_size, as far as the tensors around the neck tell them."""
    linear, gdc, features = (
        next((shapes[name] for name in names if name in shapes), ())
        for names in (_LINEAR, _GDC, _FEATURES)
    )
    if len(vit := shapes.get(_VIT, ())) == 2:
        return {"embedding_dim": vit[0]}
    if len(linear) != 2:
        return {}
    if len(gdc) == 4:
        neck, size = {"neck": "GDC"}, gdc[-1]
    elif len(features) == 1 and features[0]:
        neck, size = {"neck": "E"}, math.isqrt(linear[1] // features[0])
    else:
        return {}
    return neck | {"embedding_dim": linear[0], "image_size": _IMAGE_SIZES.get(size, 112)}


def skeleton(spec: Mapping[str, Any]) -> Backbone:
    """The network of a spec from a file, without memory for its weights.

    Raises:
        ValueError: The spec is ill-typed, or no network's.
    """
    for option, value in spec.items():
        if option not in _OPTIONS:
            raise ValueError(f"the spec of its backbone has {str(option)!r:.60}")
        if isinstance(value, bool) or not isinstance(value, _OPTIONS[option]):
            raise ValueError(f"the spec of its backbone says {option} {value!r:.60}")
    if "name" not in spec:
        raise ValueError("the spec of its backbone names no network")
    try:
        with torch.device("meta"):
            return build(**spec)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise ValueError(f"the spec of its backbone cannot be built: {error!s:.100}") from error
