"""When tensors go to a native kernel: the one place that decides it for layers and pixels."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from facescale.kernels.cpu.build import library


def kernels(name: str, *tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> Any:
    """The functions of native/`name`.cpp if they can compute on all of `tensors`, else None.

    They take `dtype` in a CPU's memory: images (b, c, h, w) channels last, rows of numbers dense.
    torch's operations do the rest: what runs under autocast, what is not to be run but looked at
    (torch.compile, export), what is transformed. Fake tensors get functions that do nothing, so
    they tell what memory the native ones need.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return None
    if torch.is_autocast_enabled("cpu"):  # which chooses the type of a result, not we
        return None
    given = [tensor for tensor in tensors if tensor is not None]
    native = library(name) if all(_is_known(tensor, dtype) for tensor in given) else None
    return _Pretence() if native and any(isinstance(t, FakeTensor) for t in given) else native


def _is_known(tensor: Tensor, dtype: torch.dtype) -> bool:
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return (
        type(tensor) in (Tensor, nn.Parameter, FakeTensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and tensor.device.type == "cpu"
        and tensor.dtype == dtype
        and tensor.is_contiguous(memory_format=layout)
    )


class _Pretence:
    """Any native function, on tensors without memory."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor lies, for a native function; null for None and for a fake one."""
    has_none = tensor is None or isinstance(tensor, FakeTensor)
    return ctypes.c_void_p(None if has_none else tensor.data_ptr())  # type: ignore[union-attr]
