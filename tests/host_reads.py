"""A spy on operations for which the host would have to wait for a CUDA device."""

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

STOPS = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}


def _waits(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether it is a copy between devices for which the host waits."""
    if name == "_to_copy" and kwargs.get("device") is not None:
        blocking = not kwargs.get("non_blocking", False)
        return blocking and torch.device(kwargs["device"]).type != args[0].device.type
    if name == "copy_" and args[1].ndim:  # a number is an argument of a kernel
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return blocking and args[0].device.type != args[1].device.type
    return False


class HostReads(TorchDispatchMode):
    """Counts them by the line of the project that asks, wherever the tensors are.

    A copy from one device to another is seen only where there are two. What Triton's interpreter
    does is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._patches = ExitStack()
        tolist = torch.Tensor.tolist  # not an operation that a dispatch mode sees

        def noted(tensor: Tensor) -> Any:
            self._note("tolist")
            return tolist(tensor)

        self._patches.enter_context(mock.patch.object(torch.Tensor, "tolist", noted))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.close()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = str(func).split(".")[1]
        masks = args[1] if name.startswith("index") and len(args) > 1 else ()
        by_mask = isinstance(masks, list | tuple) and any(
            isinstance(mask, Tensor) and mask.dtype in (torch.bool, torch.uint8) for mask in masks
        )
        if name in STOPS or by_mask or _waits(name, args, kwargs or {}):
            self._note(name)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/triton/" not in f.filename]
        if len(frames) < len(traceback.extract_stack()):
            return
        ours = [frame for frame in frames if "/facescale/" in frame.filename]
        if ours:
            place = ours[-1].filename.split("/facescale/")[-1]
            self.found[f"{place}:{ours[-1].lineno} {name}"] += 1
