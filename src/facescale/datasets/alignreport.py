"""The report of an alignment: a row of CSV for each photograph, kept while the work goes on."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facescale.datasets.photographs import Photograph
from facescale.files import naming, write_whole

ALIGNED = "aligned"
UNREADABLE = "unreadable"
SEVERAL = "several faces"
NONE = "no face"
_POINTS = tuple(f"{axis}{i}" for i in range(5) for axis in "xy")
COLUMNS = ("file", "detected", "result", "faces", "score", *_POINTS, "detail")


@dataclass(frozen=True)
class Row:
    """What became of one photograph.

    Attributes:
        file: Its path in the folder of photographs.
        result: `ALIGNED`, `SEVERAL` (none was chosen), `NONE` or `UNREADABLE`.
        faces: How many were found.
        score: Of the face that was chosen.
        points: Its five points as x0, y0, ... y4, in pixels of the photograph.
        detail: Why a file is unreadable.
    """

    file: str
    result: str
    faces: int = 0
    score: float | None = None
    points: tuple[float, ...] = ()
    detail: str = ""

    def values(self) -> list[str]:
        """In the order of `COLUMNS`."""
        points = [f"{number:.2f}" for number in self.points] or [""] * len(_POINTS)
        score = "" if self.score is None else f"{self.score:.4f}"
        detected = str(int(self.result == ALIGNED))
        return [self.file, detected, self.result, str(self.faces), score, *points, self.detail]

    @classmethod
    def of(cls, values: list[str]) -> "Row":
        """From `values()`; ValueError if it is none."""
        file, _, result, faces, score = values[:5]
        numbers = tuple(float(value) for value in values[5:15] if value)
        return cls(file, result, int(faces), float(score) if score else None, numbers, values[15])


class Journal:
    """The rows of one process, appended as they come; what an earlier run left is known.

    Attributes:
        known: Rows of this process's photographs whose work is done, by file.
    """

    def __init__(self, folder: Path, rank: int = 0, size: int = 1) -> None:
        """Keep the rows of process `rank` of `size` in `folder`."""
        self._folder, self._size = folder, size
        self._path = folder / f"align-{rank}-of-{size}.csv"
        self._done = self._path.with_suffix(".done")
        self.known: dict[str, Row] = {}

    def begin(self, photographs: Iterable[Photograph]) -> None:
        """Find out what is done already, and start the file anew with it."""
        outputs = {photograph.name: photograph.output for photograph in photographs}
        for path in (self._folder / "report.csv", *sorted(self._folder.glob("align-*-of-*.*"))):
            for row in read_rows(path):
                if row.file not in outputs or row.result == UNREADABLE:
                    continue
                if row.result != ALIGNED or (self._folder / outputs[row.file]).exists():
                    self.known[row.file] = row
        self._done.unlink(missing_ok=True)
        rows = (row.values() for row in self.known.values())
        write_whole(self._path, [_text([COLUMNS]), _text(rows)])

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows whose faces are written."""
        with naming(self._path), self._path.open("ab") as file:
            file.write(_text(row.values() for row in rows))

    def end(self, options: dict[str, Any]) -> dict[str, Any] | None:
        """Mark this process's part as complete; the last process to do so makes the one report.

        Returns:
            The summary: photographs by result, and `options`. None on the other processes.
        """
        self._path.replace(self._done)
        parts = [self._folder / f"align-{r}-of-{self._size}.done" for r in range(self._size)]
        if not all(part.exists() for part in parts):
            return None
        merging = parts[0].with_suffix(".merging")
        try:
            parts[0].rename(merging)  # of two processes that end together one succeeds
        except FileNotFoundError:
            return None
        return self._merge([merging, *parts[1:]], options)

    def _merge(self, parts: list[Path], options: dict[str, Any]) -> dict[str, Any]:
        counts = Counter(dict.fromkeys((ALIGNED, SEVERAL, NONE, UNREADABLE), 0))
        chosen = 0

        def lines() -> Iterator[bytes]:
            nonlocal chosen
            yield _text([COLUMNS])
            for row in (row for part in parts for row in read_rows(part)):
                counts[row.result] += 1
                chosen += row.result == ALIGNED and row.faces > 1
                yield _text([row.values()])

        write_whole(self._folder / "report.csv", lines())
        summary = {"photographs": counts.total(), **counts, "chosen of several": chosen, **options}
        write_whole(self._folder / "report.json", [json.dumps(summary, indent=1).encode()])
        for part in self._folder.glob("align-*-of-*.*"):
            part.unlink(missing_ok=True)
        return summary


def _text(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return os.fsencode(text.getvalue())


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a report; a line that a stopped process did not finish is passed over."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for values in csv.reader(file):
            try:
                yield Row.of(values)
            except (ValueError, IndexError):  # the heading, and an unfinished line
                continue


def check_options(folder: Path, options: dict[str, Any]) -> None:
    """Refuse a folder whose faces were aligned otherwise; else note how they are.

    Raises:
        ValueError: With what differs.
    """
    path = folder / "align.json"
    if not path.exists():
        others = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        if others and not path.exists():  # another process may have written it meanwhile
            raise ValueError(f"{folder} is not empty; give a new folder for the faces")
        write_whole(path, [json.dumps(options, indent=1).encode()])
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; give a new folder") from error
    if before != options:
        differing = [key for key in options if before.get(key) != options[key]]
        raise ValueError(
            f"{folder} was made with {differing[0]} {before.get(differing[0])!r}, not "
            f"{options[differing[0]]!r}; give the same options, or a new folder"
        )
