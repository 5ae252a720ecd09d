"""Shards on a server of this machine that behaves well, or badly."""

import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from facescale.data import remote, sampletable
from facescale.data.dataset import open_dataset
from facescale.data.unreadable import UnreadableRecord
from facescale.datasets.parts import TarWriter

pytest.importorskip("aiohttp")


class Server(ThreadingHTTPServer):
    """Serves the files of a folder; `fault` says how it misbehaves."""

    daemon_threads = True
    folder: Path
    fault = ""
    ranges = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        fault = self.server.fault
        if not path.is_file():
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.asked.append(f"{self.command} {asked[0] if asked else 'all'}")
        if fault == "500" and with_body:
            self.send_error(500)
            return
        if fault == "flaky" and len(self.server.asked) % 2:
            self.send_error(503)
            return
        data = path.read_bytes()
        body = data
        if asked and self.server.ranges:
            body = data[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{len(data)}")
        else:
            self.send_response(200)
        stated = len(body) + {"long": 7, "short": -7}.get(fault, 0) * with_body
        if fault == "no size":
            self.send_header("Transfer-Encoding", "identity")
        else:
            self.send_header("Content-Length", str(stated))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if not with_body:
            return
        if fault == "silent":
            time.sleep(3)
        elif fault == "cut":
            body = body[: len(body) // 2]
        elif fault == "less":
            body = body[:-1]
        self.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Two shards of four images each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FACESCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT_S", 0.01)
    (tmp_path / "files").mkdir()
    writer = TarWriter(tmp_path / "files", {}, 4)
    for number in range(8):
        writer.add(b"\xff\xd8\xff image %d" % number * 100, number // 2)
    writer.finish()
    started = Server(tmp_path / "files")
    thread = threading.Thread(target=started.serve_forever, args=(0.01,))
    thread.start()
    yield started
    started.shutdown()
    thread.join()
    started.server_close()


def images(server: Server) -> list[tuple[bytes, int]]:
    faces = open_dataset(f"{server.url}/shard-{{000000..000001}}.tar")
    assert faces.num_classes == 4
    return [tuple(faces.read(index)) for index in range(len(faces))]  # type: ignore[misc]


WANTED = [(b"\xff\xd8\xff image %d" % number * 100, number // 2) for number in range(8)]


def test_shards_are_read_from_a_server_and_kept(server: Server, tmp_path: Path) -> None:
    assert images(server) == WANTED
    assert server.asked.count("GET all") == 2
    assert images(server) == WANTED
    assert server.asked.count("GET all") == 2  # from the cache
    for path in (tmp_path / "files").iterdir():
        path.write_bytes(path.read_bytes().replace(b"image 0", b"image 9"))
    assert images(server)[0][0] == WANTED[0][0].replace(b"image 0", b"image 9")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cache_that_is_too_small_for_all_shards_is_kept_small(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    size = (tmp_path / "files" / "shard-000000.tar").stat().st_size
    monkeypatch.setenv("FACESCALE_CACHE_GIB", str(1.5 * size / 2**30))
    server.ranges = ranges
    faces = open_dataset(f"{server.url}/shard-{{000000..000001}}.tar")
    for index in (0, 7, 1, 6, 2, 5):
        assert tuple(faces.read(index)) == WANTED[index]
        kept = [path.stat().st_size for path in (tmp_path / "cache").glob("*.part")]
        assert sum(kept) <= 1.5 * size
    in_ranges = [asked for asked in server.asked if "bytes" in asked]
    assert len(in_ranges) == 3 if ranges else server.asked.count("GET all") > 4
    monkeypatch.setenv("FACESCALE_CACHE_GIB", str(0.5 * size / 2**30))
    server.ranges = True
    for path in (tmp_path / "cache").glob("*.part"):
        path.unlink()
    with pytest.raises(OSError, match="raise FACESCALE_CACHE_GIB"):
        images(server)


def test_what_a_killed_process_copied_in_part_is_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for name, age_s in (("old.1.1.copy", 86_400), ("new.1.1.copy", 1)):
        (tmp_path / "cache" / name).write_bytes(b"half a shard")
        then = time.time() - age_s
        os.utime(tmp_path / "cache" / name, (then, then))
    assert images(server) == WANTED
    assert [path.name for path in (tmp_path / "cache").glob("*.copy")] == ["new.1.1.copy"]


@pytest.mark.parametrize("fault", ["500", "cut", "less", "long", "short"])
def test_wrong_answers_are_refused_with_the_url(server: Server, fault: str) -> None:
    server.fault = fault
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:\d+/shard-000000\.tar: "):
        images(server)


@pytest.mark.parametrize("fault", ["500", "cut", "less", "long", "short"])
def test_wrong_answers_to_ranges_are_unreadable_images(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    faces = open_dataset(f"{server.url}/shard-000000.tar")
    for path in (tmp_path / "cache").glob("*.part"):
        path.unlink()
    server.fault = fault
    with pytest.raises(UnreadableRecord, match=r"shard-000000\.tar byte 512"):
        faces.read(0)


def test_a_server_that_fails_now_and_then_is_asked_again(server: Server) -> None:
    server.fault = "flaky"
    assert images(server) == WANTED


def test_a_silent_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENCE_S", 0.1)
    monkeypatch.setattr(remote, "TRIES", 1)
    server.fault = "silent"
    began = time.monotonic()
    with pytest.raises(OSError, match="imeout"):
        images(server)
    assert time.monotonic() - began < 2.5


def test_missing_files_and_servers_are_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.tar: the server has no such file"):
        open_dataset(f"{server.url}/none.tar")
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:1/a\.tar: Client.*Cannot connect"):
        open_dataset("http://127.0.0.1:1/a.tar")
    server.fault = "no size"
    with pytest.raises(OSError, match="does not tell the size"):
        images(server)
    monkeypatch.setenv("FACESCALE_CACHE_GIB", "much")
    with pytest.raises(ValueError, match="FACESCALE_CACHE_GIB is 'much'; give a number"):
        images(server)


def test_the_table_of_shards_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampletable, "WORTH_KEEPING", 1)
    images(server)
    monkeypatch.setattr("facescale.data.tar._scan", lambda files: pytest.fail("scanned"))
    assert images(server) == WANTED
