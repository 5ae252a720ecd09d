"""Runs checks of Triton kernels in processes of their own: interpreted on the CPU, or compiled.

Triton reads TRITON_INTERPRET when it is imported, so one process serves one mode only.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@cache
def _process(interpret: bool) -> ProcessPoolExecutor:
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1" if interpret else "0"):
        executor.submit(_begin, interpret).result()  # the process starts now, with this environment
    return executor


def _begin(interpret: bool) -> None:
    import torch

    torch.set_num_threads(1)
    if interpret:
        mend_interpreter()


def mend_interpreter() -> None:
    """Two repairs of Triton 3.6 and 3.7.

    It takes the bound of a loop, an array of one element, for a scalar, which numpy 2.4 refuses.
    And it patches its language at every call of a function by a kernel, though the kernel's launch
    has done so for what they both know as `tl`: a fifth of a test's time.
    """
    from triton import language
    from triton.runtime import interpreter

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function.fn.__globals__.get("tl") is not language:
            interpreter._patch_lang(function.fn)
        try:
            return function.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call

    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor


def interpreted(work: Callable[..., Any], *args: Any) -> Any:
    """What `work(*args)`, a function of a module, returns where kernels are interpreted."""
    return _process(True).submit(work, *args).result()


def compiled(work: Callable[..., Any], *args: Any) -> Any:
    """What `work(*args)`, a function of a module, returns where kernels can be compiled."""
    return _process(False).submit(work, *args).result()
