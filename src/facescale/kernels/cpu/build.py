"""Builds the kernels on first use, with the user's own C++ compiler, and keeps them.

Built where they run, they use all that the processor can do; a kept one is found again by its
source, the flags, the compiler and the processor, so machines that share a home do not mix them up.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from facescale.files import cache_folder

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    # Nothing that changes a number beyond its rounding: NaN and infinity stay what they are.
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
OFF = "FACESCALE_NATIVE"
"""Environment variable; at 0 no kernel is used."""


class BuildError(Exception):
    """Why there are no kernels, and what helps."""


def library(name: str) -> ctypes.CDLL | None:
    """The functions of `name`.cpp, or None where they cannot be had; `missing` then says why."""
    return None if missing() else _load(name)


@functools.cache
def missing() -> str | None:
    """Why this process has no kernels, in a line with the remedy; None where it has them."""
    try:
        for source in sorted(SOURCES.glob("*.cpp")):
            _load(source.stem)
    except BuildError as error:
        return str(error)
    return None


@functools.cache
def _load(name: str) -> ctypes.CDLL:
    if os.environ.get(OFF) == "0":
        raise BuildError(f"{OFF} is 0")
    folder = cache_folder()
    if folder is None:
        raise BuildError("there is no home to keep kernels in; set XDG_CACHE_HOME")
    source = SOURCES / f"{name}.cpp"
    compiler = _compiler()
    shared = "".join(path.read_text() for path in sorted(SOURCES.glob("*.h")))
    parts = (source.read_text(), shared, *FLAGS, compiler, _processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    built = folder / f"{name}-{key}.so"
    try:
        if not built.exists():
            _compile(compiler, source, built)
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise BuildError(f"{built}: {error.strerror or error}; set XDG_CACHE_HOME") from None


def _compile(compiler: str, source: Path, built: Path) -> None:
    """Compile to a name of its own, then rename: several ranks may do so at once."""
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        part = Path(folder) / built.name
        done = subprocess.run(
            [compiler, *FLAGS, str(source), "-o", str(part)], capture_output=True, text=True
        )
        if done.returncode:
            first = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
            raise BuildError(f"{compiler} could not build {source.name}: {first}")
        part.replace(built)


def _compiler() -> str:
    """Path of the user's C++ compiler."""
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler ({', '.join(COMPILERS)}); install g++")


def _processor() -> str:
    """What tells processors apart that need builds of their own."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
