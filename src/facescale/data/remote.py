"""Files on servers, through fsspec: `https://`, `s3://`, ... Extra `remote`.

A file that is wanted whole is copied into a cache folder of a bounded size, where all processes of
the host find it. Parts of files that are not there are asked for by their range of bytes; from a
server that knows no ranges, the file is copied again.
"""

import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from facescale.data.sampletable import read_range
from facescale.files import cache_folder

CACHE, CACHE_GIB = "FACESCALE_CACHE", "FACESCALE_CACHE_GIB"
"""Environment: the folder, and how large it may become [16]."""

PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hdfs")
TRIES = 3
WAIT_S = 0.5  # before the second try; then twice as long
SILENCE_S = 60.0  # without a byte, after which a server is given up

_URL = re.compile(rf"({'|'.join(PROTOCOLS)})://\S+")
_PARTIAL = ".copy"  # suffix of a file that is being copied
_DEAD_S = 10 * SILENCE_S  # after which nobody copies it any more: its process was killed
_ASKED = 16  # servers' answers that are waited for at once
_MAX_MESSAGE = 300
_NOT_FOUND = 404  # fsspec says of every other status too that there is no file

Answer = TypeVar("Answer")


def is_url(source: str) -> bool:
    """Whether a source is on a server."""
    return _URL.fullmatch(source) is not None


class RemoteFiles:
    """Files by number, at URLs."""

    def __init__(self, urls: list[str]) -> None:
        """Ask for the sizes of all files.

        Raises:
            FileNotFoundError: A server has none at a URL.
            OSError: A server does not answer, or does not tell the size.
            ImportError: A package is missing.
            ValueError: The size of the cache is no number.
        """
        self._urls = urls
        self._cache = _Cache()
        self._has_ranges = True
        with ThreadPoolExecutor(_ASKED) as pool:
            states = list(pool.map(_state, urls))
        self._sizes = [size for size, _ in states]
        self._facts = [f"{url} {size} {tag}" for url, (size, tag) in zip(urls, states, strict=True)]

    def __len__(self) -> int:
        return len(self._urls)

    def name(self, number: int) -> str:
        """The URL."""
        return self._urls[number]

    def facts(self) -> list[str]:
        """URLs, sizes and tags."""
        return self._facts

    def open(self, number: int) -> BinaryIO:
        """The whole file, from the cache."""
        return self._cache.fetch(self._urls[number], self._facts[number], self._sizes[number])

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Some bytes, from the cache or from the server.

        Raises:
            OSError: The server does not answer, or with another number of bytes.
        """
        path = self._cache.path(self._facts[number])
        try:
            return read_range(path, offset, size)
        except FileNotFoundError:
            pass
        if self._has_ranges:
            try:
                return _try(self._urls[number], lambda: self._ask(number, offset, size))
            except _NoRangesError:
                self._has_ranges = False
        with self.open(number) as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"{self._urls[number]} has become shorter")
        return data

    def _ask(self, number: int, offset: int, size: int) -> bytes:
        url = self._urls[number]
        system, path = _system(url)
        known = {"size": self._sizes[number]} if url.startswith("http") else {}
        try:
            with system.open(path, "rb", block_size=2**16, cache_type="none", **known) as file:
                file.seek(offset)
                data: bytes = file.read(size)
        except ValueError as error:  # the answer is the whole file, which fsspec does not read
            raise _NoRangesError(f"{error}") from error
        if len(data) != size:
            raise OSError(f"answered with {len(data)} bytes of {size}")
        return data


class _NoRangesError(Exception):
    """The server answers with whole files only."""


class _Cache:
    """A folder of whole files; the ones that were not used for longest are removed."""

    def __init__(self) -> None:
        root = os.environ.get(CACHE)
        own = cache_folder()
        if not root and own is None:
            raise ValueError(f"there is no home folder to keep shards in; set {CACHE} to a folder")
        self._folder = Path(root) if root else Path(str(own), "shards")
        text = os.environ.get(CACHE_GIB) or "16"
        try:
            self._limit = int(float(text) * 2**30)
        except (ValueError, OverflowError):
            self._limit = -1
        if self._limit < 0:
            raise ValueError(f"{CACHE_GIB} is {text!r}; give a number of GiB")
        self._lock = threading.Lock()

    def path(self, facts: str) -> Path:
        """Where a file is kept, if it is."""
        return self._folder / f"{hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()}.part"

    def fetch(self, url: str, facts: str, size: int) -> BinaryIO:
        """A whole file, open; it is copied if need be."""
        if size > self._limit:
            raise OSError(
                f"{url} has {size} bytes, and the cache may have {self._limit}: raise {CACHE_GIB}"
            )
        path = self.path(facts)
        self._folder.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            with _locked(path.with_suffix(".lock")):
                if not path.exists():
                    self._make_room(size)
                    _try(url, lambda: _copy(url, path, size))
                try:
                    os.utime(path)
                    return path.open("rb")  # stays readable when it is removed
                except FileNotFoundError:  # another process made room
                    continue
        raise OSError(f"{url} is removed from the cache as soon as it is there: raise {CACHE_GIB}")

    def _make_room(self, size: int) -> None:
        with self._lock:
            kept = []
            for path in self._folder.iterdir():
                try:
                    status = path.stat()
                except FileNotFoundError:  # another process has removed it
                    continue
                if path.suffix == ".part":
                    kept.append((status.st_mtime_ns, status.st_size, path))
                elif path.suffix == _PARTIAL and time.time() - status.st_mtime > _DEAD_S:
                    path.unlink(missing_ok=True)
            total = size + sum(length for _, length, _ in kept)
            for _, length, path in sorted(kept):
                if total <= self._limit:
                    return
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)
                total -= length


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one thread of one process of this host at a time."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(url: str, path: Path, size: int) -> None:
    """Copy a file of a known size; it appears whole or not at all."""
    system, name = _system(url)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.{threading.get_ident()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            system.get_file(name, _Bounded(file, size))
            file.flush()
        got = partial.stat().st_size
        if got != size:
            raise OSError(f"answered with {got} bytes of {size}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Bounded:
    """Takes no more bytes than a file has, whatever a server sends."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._left = file, limit

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise OSError("answered with more bytes than the file has")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _state(url: str) -> tuple[int, str]:
    """Size of a file, and what changes with its content."""

    def ask() -> tuple[int, str]:
        system, path = _system(url)
        info = system.info(path)
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise OSError("the server does not tell the size of the file")
        names = ("ETag", "etag", "Last-Modified", "LastModified", "mtime")
        return size, next((str(info[name]) for name in names if info.get(name)), "")

    return _try(url, ask)


def _try(url: str, work: Callable[[], Answer]) -> Answer:
    """Ask a server, three times if it fails; OSError names the URL."""
    for number in range(TRIES):
        try:
            return work()
        except (_NoRangesError, ImportError):
            raise
        except Exception as error:  # each file system has its own
            cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
            if cause is None or getattr(cause, "status", 0) == _NOT_FOUND:
                raise FileNotFoundError(f"{url}: the server has no such file") from error
            if number == TRIES - 1:
                reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:_MAX_MESSAGE]
                raise OSError(f"{url}: {reason}") from error
        time.sleep(WAIT_S * 2**number)
    raise AssertionError("the last try returns or raises")


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {}
        if url.startswith("http"):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
            options = {"client_kwargs": {"timeout": timeout}}
        system, path = url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        raise ImportError(f"{url}: {error}; pip install 'facescale[remote]'") from error
    return system, path
