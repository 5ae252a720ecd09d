"""Says what a data set has: identities, images of each, sizes, and what its headers state."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facescale.data.dataset import FORMATS, Dataset, open_dataset
from facescale.data.found import Found, found_in
from facescale.data.recordfile import RecordFile
from facescale.data.recordio import HEADER, LABEL, RecordIO
from facescale.datasets.examine import Flaw
from facescale.datasets.names import names_of
from facescale.datasets.subset import Watch
from facescale.datasets.walk import Walked, default_threads, walk_
from facescale.evaluation.streaming import unwatched

_FEW_BINS = 20  # of one number of images each
_MAX_TEXT = 80  # characters of a property file that are shown


@dataclass
class Inspection:
    """What was found in a data set.

    Attributes:
        dataset: The set.
        kind: Name of its format.
        found: Its size, and a digest of its people.
        names: Of the people, by label; None where nothing names them.
        labels: (n,) of every image; -1 where it cannot be read or is out of range.
        counts: (num_classes,) images of each identity.
        sizes: How many images there are of each (width, height); (0, 0) where it is not known.
        num_bytes: Of all image files.
        unreadable: Records that cannot be read.
        out_of_range: Labels that are no class.
        facts: What the headers state, in words.
    """

    dataset: Dataset
    kind: str
    found: Found
    names: list[str] | None
    labels: NDArray[np.int64]
    counts: NDArray[np.int64]
    sizes: Counter[tuple[int, int]]
    num_bytes: int
    unreadable: int
    out_of_range: int
    facts: dict[str, str]

    @property
    def num_empty(self) -> int:
        """Classes without images."""
        return int((self.counts == 0).sum())

    def bins(self) -> list[tuple[int, int, int]]:
        """Identities by their number of images: (lowest, highest, identities) of each bin.

        A bin for each number where these are few, else bins that double; empty classes apart.
        """
        with_images = self.counts[self.counts > 0]
        least = int(with_images.min()) if len(with_images) else 1
        most = int(with_images.max(initial=least))
        if most - least < _FEW_BINS:
            edges = list(range(least, most + 1))
        else:
            doubling = [2**power for power in range(64)]
            edges = [least, *(edge for edge in doubling if least < edge <= most)]
        stops = [*edges[1:], most + 1]
        empty = [(0, 0, self.num_empty)] if self.num_empty else []
        return empty + [
            (low, stop - 1, int(((self.counts >= low) & (self.counts < stop)).sum()))
            for low, stop in zip(edges, stops, strict=True)
        ]

    def as_values(self) -> dict[str, Any]:
        """Plain values for programs."""
        with_images = self.counts[self.counts > 0]
        known = self.labels[self.labels >= 0]
        return {
            "kind": self.kind,
            "images": len(self.dataset),
            "classes": self.dataset.num_classes,
            "classes_without_images": self.num_empty,
            "people": self.found.people,
            "bytes": self.num_bytes,
            "lowest_label": int(known.min()) if len(known) else None,
            "highest_label": int(known.max()) if len(known) else None,
            "labels_out_of_range": self.out_of_range,
            "unreadable": self.unreadable,
            "images_per_identity": {
                "least": int(with_images.min()) if len(with_images) else 0,
                "median": float(np.median(with_images)) if len(with_images) else 0.0,
                "mean": float(with_images.mean()) if len(with_images) else 0.0,
                "most": int(with_images.max()) if len(with_images) else 0,
                "bins": [list(row) for row in self.bins()],
            },
            "sizes": [[*size, count] for size, count in self.sizes.most_common(20)],
            "num_sizes": len(self.sizes),
            "names": None if self.names is None else self.names[:3],
            "facts": self.facts,
        }


def inspect(
    source: str | Path,
    num_threads: int | None = None,
    watch: Watch = unwatched,
) -> Inspection:
    """Read every record of a data set, but decode no image.

    Args:
        source: As `open_dataset` takes it.
        num_threads: That read; as many as there are cores when not given.
        watch: Passes on the ranges of records that are done, to show how far it is.

    Raises:
        FileNotFoundError: Nothing lies there.
        ValueError: It is no data set, or cannot be opened.
    """
    dataset = open_dataset(source)
    walked = Walked.of(len(dataset))
    threads = num_threads or default_threads()
    for _ in watch(walk_(walked, dataset, threads, decode=False), len(dataset)):
        pass
    is_label = (walked.flaws & np.uint16(int(Flaw.LABEL))) > 0
    return Inspection(
        dataset=dataset,
        kind=next(one.name for one in reversed(FORMATS) if one.claims(str(source))),
        found=found_in(dataset),
        names=names_of(dataset),
        labels=walked.labels,
        counts=np.bincount(walked.labels[walked.labels >= 0], minlength=dataset.num_classes),
        sizes=walked.sizes,
        num_bytes=walked.num_bytes,
        unreadable=int(((walked.labels < 0) & ~is_label).sum()),
        out_of_range=int(is_label.sum()),
        facts=_record_facts(dataset) if isinstance(dataset, RecordIO) else {},
    )


def _record_facts(dataset: RecordIO) -> dict[str, str]:
    """What `property`, the index and record 0 of RecordIO state."""
    facts, path = {"file": f"{dataset.path}, {dataset.path.stat().st_size:,} bytes"}, dataset.path
    stated, index = path.with_name("property"), path.with_suffix(".idx")
    facts["property"] = "missing"
    if stated.is_file():
        with stated.open("rb") as file:
            facts["property"] = repr(file.read(_MAX_TEXT).decode(errors="replace").strip())
    facts["index"] = f"{index.stat().st_size:,} bytes" if index.is_file() else "missing"
    try:
        first = RecordFile(path).read(0, HEADER.size + 2 * LABEL.size)
        count, label, _, _ = HEADER.unpack_from(first)
        labels = [LABEL.unpack_from(first, HEADER.size + 4 * i)[0] for i in range(min(count, 2))]
    except (ValueError, OSError, ArithmeticError) as error:
        return facts | {"record 0": f"unreadable: {error}"}
    except Exception:  # struct.error: shorter than its header states
        return facts | {"record 0": "too short for its header"}
    if len(labels) == 2 and len(first) == HEADER.size + 2 * LABEL.size and count == 2:
        facts["layout"] = "InsightFace's: record 0 states where images and identities are"
        facts["record 0"] = f"identity records are {labels[0]:,.0f} to {labels[1] - 1:,.0f}"
    else:
        facts["layout"] = "im2rec's: every record is an image"
        several = f"{count} labels, of which the first is taken" if count else f"label {label:g}"
        facts["record 0"] = several
    return facts
