"""What kernels need of a GPU, found by compiling them ahead of time, without one.

`with launches() as seen:` records what the operators would launch, on tensors of device "meta";
`compile_launch` compiles one of them as triton would on its first call. `catalogue` prints the
tables of docs/gpu_kernels.md.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory that one program may have, by compute capability."""
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: its arguments by name, constants and options included."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        registers: Of a thread.
        stack: Bytes of a thread in local memory; 0 says that no register is spilled.
        local: Bytes of other local memory.
        shared: Bytes of a program.
        tensor_core: How many tensor-core instructions its code has.
    """

    registers: int
    stack: int
    local: int
    shared: int
    tensor_core: int


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Record the kernels that are launched inside, instead of launching them."""
    seen: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = kernel.arg_names
        given = dict(zip(names, args, strict=False)) | kwargs
        arguments = {name: given.pop(name) for name in names}
        seen.append(Launch(kernel, arguments, given, grid))

    with mock.patch.object(JITFunction, "run", run):
        yield seen


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile for compute capability 80 or 90."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        kind = "constexpr" if parameter.is_constexpr else _type(value)
        special = isinstance(value, int) and not parameter.do_not_specialize
        if special and value == 1 and kind != "constexpr":
            kind = "constexpr"
        signature[name] = kind
        if kind == "constexpr":
            constants[name] = value
        elif kind.startswith("*") or (special and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    built = triton.compile(source, target=target, options=dict(launch.options))
    return _resources(built)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _resources(built: Any) -> Resources:
    dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [str(dump), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    use = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return Resources(
        registers=use["REG"],
        stack=use["STACK"],
        local=use["LOCAL"],
        shared=built.metadata.shared,
        tensor_core=len(re.findall(r"wgmma\.mma_async|mma\.sync", built.asm["ptx"])),
    )
