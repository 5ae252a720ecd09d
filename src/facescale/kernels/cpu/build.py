"""Compiles the kernels on first use, with the user's own C++ compiler, and caches the libraries.

They are compiled for the processor that runs them. The name of a cached library is a hash of its
source, the flags, the compiler, its version, glibc's version and the processor's features, so
machines that share a home directory do not mix them up. Only libraries that no other user can have
written are loaded: see `keep`.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from facescale.files import cache_folder
from facescale.kernels.cpu import keep

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
COMPILE_LIMIT_S = 300.0
"""Seconds for one source; the longest takes about 30 on a busy core."""

_log = logging.getLogger(__name__)


class BuildError(Exception):
    """Why there are no kernels, with the remedy."""


def library(name: str) -> ctypes.CDLL | None:
    """The functions of `name`.cpp; None if they cannot be built, and `missing` says why."""
    return None if missing() else _load(name)


@functools.cache
def missing() -> str | None:
    """Why this process has no kernels, in one line with the remedy; None if it has them."""
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
    source, compiler = SOURCES / f"{name}.cpp", _compiler()
    try:
        folder = _folder()
        if folder is not None:
            return _load_kept(compiler, source, folder / f"{name}-{_key(source, compiler)}.so")
    except OSError as error:
        _warn_once(f"kernels cannot be kept: {error}; set XDG_CACHE_HOME")
    try:
        with tempfile.TemporaryDirectory(prefix="facescale-") as private:
            library = Path(private, f"{name}.so")
            _compile(compiler, source, library)
            return _open(library)
    except OSError as error:
        raise BuildError(f"{error}; set TMPDIR") from None


def _load_kept(compiler: str, source: Path, library: Path) -> ctypes.CDLL:
    """Load `library`, after compiling it where it is missing, damaged or somebody else's."""
    if keep.is_intact(library):
        try:
            return _open(library)
        except BuildError:  # once more, from the source
            keep.remove(library)
    with keep.building(library.parent, COMPILE_LIMIT_S) as own:
        if not keep.is_intact(library):  # still: another process may have built it meanwhile
            part = own / library.name
            _compile(compiler, source, part)
            keep.remove(library)
            keep.adopt(part, library)
    return _open(library)


def _open(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"{error}; set XDG_CACHE_HOME to where programs may be executed") from None


@functools.cache
def _announce() -> None:
    """Say why the process is silent for so long."""
    _log.warning("compiling the kernels for this processor, for half a minute to two")


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s. They are compiled at every start until then", message)


def _folder() -> Path | None:
    """Where libraries are kept; None where there is no home, or only an unsafe place."""
    root = cache_folder()
    if root is None:
        _warn_once("there is no home to keep kernels in; set XDG_CACHE_HOME")
        return None
    try:
        return keep.private_folder(root / "kernels")
    except keep.UnsafeFolderError as error:
        _warn_once(f"kernels are not kept: {error}, or set XDG_CACHE_HOME")
        return None


def _key(source: Path, compiler: str) -> str:
    """What a library depends on."""
    shared = "".join(path.read_text() for path in sorted(SOURCES.glob("*.h")))
    versions = (_version(compiler), *platform.libc_ver())
    parts = (source.read_text(), shared, *FLAGS, compiler, *versions, _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, source: Path, library: Path) -> None:
    """Compile `source` to `library`; BuildError with the compiler's reason."""
    _announce()
    done = _run([compiler, *FLAGS, str(source), "-o", str(library)])
    if done.returncode:
        raise BuildError(f"{compiler} could not build {source.name}: {_reason(done)}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler, for no longer than the limit."""
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from None
    try:
        out, err = process.communicate(timeout=COMPILE_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took longer than {COMPILE_LIMIT_S:.0f} s") from None
    finally:
        if process.poll() is None:  # with its own children, which hold the pipes
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The first error of the compiler, else the last line, which is the linker's."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("collect2:")]
    errors = [line for line in told if "error:" in line]
    return next(iter(errors or told[-1:]), f"exit code {done.returncode}")


@functools.cache
def _version(compiler: str) -> str:
    return _run([compiler, "--version"]).stdout


def _compiler() -> str:
    """Path of the user's C++ compiler."""
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler ({', '.join(COMPILERS)}); install g++")


def _processor() -> str:
    """The features of the processor: a build for others might not run on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
