"""Registers native kernels as operators of torch, `torch.ops.facescale.NAME`.

They work on fake tensors and in compiled graphs. They are defined by `torch.library.Library`, not
by `custom_op`, which takes 10 us a call instead of 4 and imports the compiler at the first
definition (one second, 100 MB).
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from facescale.kernels.cpu.build import library, missing

NAMESPACE = "facescale"

_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # what it defines lives as long as it does


def define(
    schema: str,
    fake: Callable[..., Any],
    kernel: Callable[..., Any],
    on: Sequence[str] = ("CPU",),
) -> Any:
    """Define an operator by its schema, such as `twice(Tensor x) -> Tensor`, and return it.

    `kernel` computes on the devices `on`. `fake` returns empty tensors of the outputs' shapes and
    types, for fake tensors. Inputs are passed by position.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    for key in on:
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def define_native(schema: str, allocate: Callable[..., Any], fill: Callable[..., None]) -> Any:
    """Define an operator from `allocate`, which makes its outputs, and `fill`, which computes them.

    `allocate` is called with the inputs, `fill` with the inputs and the outputs. Without outputs
    the operator changes inputs that the schema marks as mutated.
    """

    def kernel(*inputs: Any) -> Any:
        outputs = allocate(*inputs)
        if outputs is None:
            fill(*inputs)
        else:
            fill(*inputs, *(outputs if isinstance(outputs, tuple) else (outputs,)))
        return outputs

    return define(schema, allocate, kernel)


def define_gradient(
    operator: Any, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> None:
    """Register how to differentiate an operator: see `torch.library.register_autograd`."""
    torch.library.register_autograd(
        operator.name(), backward, setup_context=setup_context, lib=_LIBRARY
    )


def native(name: str) -> Any:
    """The functions of `name`.cpp. Raises RuntimeError if they cannot be built."""
    functions = library(name)
    if functions is None:
        raise RuntimeError(f"the operator needs compiled kernels: {missing()}")
    return functions


def takes(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Whether operators compute on all of `tensors`: `dtype` on the CPU, dense, images NHWC."""
    return all(
        tensor is None
        or (tensor.device.type == "cpu" and tensor.dtype == dtype and _is_dense(tensor))
        for tensor in tensors
    )


def _is_dense(tensor: Tensor) -> bool:
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.is_contiguous(memory_format=layout)


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """A tensor's address for a native function; null for None."""
    if tensor is None:
        return ctypes.c_void_p(None)
    assert _is_dense(tensor)
    return ctypes.c_void_p(tensor.data_ptr())


def images(shape: tuple[int, ...]) -> Tensor:
    """An uninitialised float32 image of shape (b, c, h, w), channels last."""
    return torch.empty(shape, memory_format=torch.channels_last)


def channels_last(image: Tensor) -> Tensor:
    """The same image, channels last."""
    return image.contiguous(memory_format=torch.channels_last)
