"""Writes a data set in another format: streamed, resumable, and read again at the end."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from facescale.data.dataset import Dataset, open_dataset
from facescale.data.found import found_in
from facescale.data.images import IMAGE_SIZE, to_file
from facescale.data.order import EpochOrder
from facescale.data.sidecars import write_names, write_property
from facescale.datasets.output import Output, Plan, Progress
from facescale.datasets.pack import Prepare
from facescale.datasets.parts import FolderWriter, OFRecordWriter, TarWriter, check_folders
from facescale.datasets.recordio import Labels, RecordWriter
from facescale.datasets.stream import CHUNK, MODULUS, Names, Skipped, read_ahead

MARK_S = 5.0
"""Seconds between two marks; what is done after the last one is lost when the process is killed."""
SKIPPED = "skipped.txt"


class Writer(Protocol):
    """Writes the files of a format, and can go on from a mark."""

    def add(self, image: bytes, label: int) -> None:
        """Append an image file and the class of its person."""

    def mark(self) -> dict[str, int]:
        """Bring everything to the disk, and say what is needed to go on from here."""

    def finish(self) -> None:
        """Write what follows the last image."""

    def close(self) -> None:
        """Let go of the files."""


@dataclass(frozen=True)
class Options:
    """How a set is written.

    Attributes:
        to: A format of `WRITERS`.
        order: "kept", or "shuffled" by `seed`: where the images lie in the files.
        seed: Of the order.
        prepare: Checks and resizes images; None takes every file as it is.
        labels: Of RecordIO: "exact" allows more than 2**24 people.
        part_size: Images of a part or a shard.
        on_error: At an unusable image, raise, or list it in `skipped.txt` and go on.
        threads: That read.
    """

    to: str = "recordio"
    order: Literal["kept", "shuffled"] = "kept"
    seed: int = 0
    prepare: Prepare | None = None
    labels: Labels = "float32"
    part_size: int = 10_000
    on_error: Literal["stop", "skip"] = "stop"
    threads: int = 2

    def __post_init__(self) -> None:
        if self.to not in WRITERS:
            raise ValueError(f"cannot write {self.to!r}; choose one of {', '.join(WRITERS)}")
        for name in ("part_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


Make = Callable[[Path, Dataset, Mapping[str, int], Options], Writer]


def _make_recordio(
    folder: Path, dataset: Dataset, mark: Mapping[str, int], options: Options
) -> Writer:
    return RecordWriter(folder, dataset.num_classes, mark, labels=options.labels)


def _make_ofrecord(
    folder: Path, dataset: Dataset, mark: Mapping[str, int], options: Options
) -> Writer:
    return OFRecordWriter(folder, mark, options.part_size)


def _make_tar(folder: Path, dataset: Dataset, mark: Mapping[str, int], options: Options) -> Writer:
    return TarWriter(folder, mark, options.part_size)


def _make_folder(
    folder: Path, dataset: Dataset, mark: Mapping[str, int], options: Options
) -> Writer:
    names = Names(dataset)
    check_folders(names.own, dataset.num_classes)
    return FolderWriter(folder, mark, names)


WRITERS: dict[str, Make] = {
    "recordio": _make_recordio,
    "ofrecord": _make_ofrecord,
    "tar": _make_tar,
    "folder": _make_folder,
}
"""The formats that can be written."""


class Conversion:
    """The work on one set: `write`, then `verify`, and the set is there.

    Both yield ranges of the images that are done, for a progress bar.

    Attributes:
        remaining: Images to be read by `write`; fewer than all where a killed process is continued.
        progress: How far it is.
    """

    def __init__(self, dataset: Dataset, out: str | Path, options: Options | None = None) -> None:
        """Begin at `out`, or go on with what was begun there; errors as of `Output`."""
        self._dataset, self._options = dataset, options or Options()
        self._output = Output(out, _plan(dataset, self._options))
        self.remaining = 0 if self.progress.complete else len(dataset) - self.progress.read

    @property
    def progress(self) -> Progress:
        """As last written down."""
        return self._output.progress

    @property
    def folder(self) -> Path:
        """Where the files are now; at the end the folder that was asked for."""
        return self._output.folder

    def write(self) -> Iterator[range]:
        """Read the source and write the files.

        Raises:
            ValueError: An image is unusable, and `on_error` is "stop"; or the format cannot hold
                the set.
            OSError: The disk is full.
        """
        if self.progress.complete:
            return
        folder, options = self._output.folder, self._options
        writer = WRITERS[options.to](folder, self._dataset, self.progress.mark, options)
        self._cut_list()
        try:
            yield from self._write(writer)
            writer.finish()
        finally:
            writer.close()
        if options.to != "folder":
            write_property(folder, self._dataset.num_classes, IMAGE_SIZE)
            if (names := Names(self._dataset).own) is not None:
                write_names(folder, names)

    def _write(self, writer: Writer) -> Iterator[range]:
        options, now = self._options, self.progress
        marked = time.monotonic()
        for items in read_ahead(
            self._dataset,
            self._chunks(now.read),
            options.prepare or to_file,
            options.threads,
            options.on_error == "skip",
        ):
            total, written = int(now.digest, 16), now.written
            for item in items:
                if isinstance(item, Skipped):
                    self._list(item)
                    continue
                writer.add(item.image, item.label)
                total, written = (total + item.digest) % MODULUS, written + 1
            begin = now.read
            now = replace(now, read=begin + len(items), written=written, digest=f"{total:x}")
            yield range(begin, now.read)
            if time.monotonic() - marked > MARK_S:
                self._keep(writer, now)
                marked = time.monotonic()
        self._keep(writer, now)

    def _keep(self, writer: Writer, now: Progress) -> None:
        self._output.keep(replace(now, mark=writer.mark()))

    def _list(self, item: Skipped) -> None:
        where, reason = (" ".join(text.split()) for text in item)  # names may have line breaks
        with (self._output.folder / SKIPPED).open("a", errors="surrogateescape") as file:
            file.write(f"{where}\t{reason}\n")

    def _cut_list(self) -> None:
        """Forget what was listed after the mark."""
        path = self._output.folder / SKIPPED
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[: self.progress.read - self.progress.written]))

    def _chunks(self, first: int) -> Iterator[NDArray[np.int64]]:
        """Indices of the source, in the order of writing, from `first` on."""
        order = EpochOrder(len(self._dataset), self._options.seed)
        for begin in range(first, len(self._dataset), CHUNK):
            places = np.arange(begin, min(begin + CHUNK, len(self._dataset)))
            yield order.indices(places) if self._options.order == "shuffled" else places

    def verify(self) -> Iterator[range]:
        """Read the new set, compare it with what was read of the source, and finish.

        Raises:
            ValueError: It has another number of images, other images or other people.
        """
        if self.progress.complete:
            return
        now = self.progress
        made = open_dataset(self._output.folder)
        places = np.arange(len(made))
        chunks = (places[begin : begin + CHUNK] for begin in range(0, len(made), CHUNK))
        total = done = 0
        for items in read_ahead(made, chunks, threads=self._options.threads):
            total += sum(item.digest for item in items if not isinstance(item, Skipped))
            done += len(items)
            yield range(done - len(items), done)
        if done != now.written or f"{total % MODULUS:x}" != now.digest:
            raise ValueError(
                f"{self._output.folder}: {done} images were read back of {now.written} written, or "
                "they are not the same: look at the disk, remove the folder and begin anew"
            )
        self._output.finish(replace(now, complete=True))

    def close(self) -> None:
        """Let another process go on."""
        self._output.close()


def convert(dataset: Dataset, out: str | Path, options: Options | None = None) -> Progress:
    """Write `dataset` to a new folder, or finish what a killed process began.

    Returns:
        How many images were written, and their digest.

    Raises:
        FileExistsError, ValueError, OSError: As `Output` and `Conversion` raise them.
    """
    work = Conversion(dataset, out, options)
    try:
        for _ in work.write():
            pass
        for _ in work.verify():
            pass
    finally:
        work.close()
    return work.progress


def _plan(dataset: Dataset, options: Options) -> Plan:
    """What the content of the new set depends on."""
    found = found_in(dataset)
    chosen = asdict(options)
    prepare = chosen.pop("prepare") or {}
    for name in ("threads", "on_error"):  # no complete set depends on them
        del chosen[name]
    source = {"images": found.num_images, "classes": found.num_classes, "people": found.people}
    return {**source, **chosen, **{f"image_{name}": value for name, value in prepare.items()}}
