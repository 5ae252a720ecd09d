"""Cuts aligned faces out of photographs, in threads and in any number of processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg

from facescale.data.images import IMAGE_SIZE, Pixels, decode_whole, to_file
from facescale.datasets.ahead import ahead
from facescale.datasets.alignreport import ALIGNED, NONE, SEVERAL, UNREADABLE, Journal, Row
from facescale.datasets.photographs import Photograph, share, walk
from facescale.detection.detector import LONGEST, Detector, Rule, choose_face, find_faces
from facescale.evaluation.alignment import align
from facescale.evaluation.streaming import unwatched
from facescale.files import require_regular, said_of, write_whole

Watch = Callable[[Iterator[list[Row]], int], Iterator[list[Row]]]

JPEG_QUALITY = 95
_GROUP = 16  # photographs


@dataclass(frozen=True)
class Aligner:
    """How a face is found, chosen and written.

    Attributes:
        detector: Finds faces.
        rule: Which face of several is meant; "only" takes none of them.
        format: Of the files: JPEG of quality 95 without halved colours, or PNG.
        size: Height and width of a face; the template is scaled with it.
        longest: Pixels of the longer side of what the detector sees.
    """

    detector: Detector
    rule: Rule = "largest"
    format: Literal["jpg", "png"] = "jpg"
    size: int = IMAGE_SIZE
    longest: int = LONGEST

    def align_file(self, root: Path, folder: Path, photograph: Photograph) -> Row:
        """Write the face of a photograph in `root` into `folder`.

        A file that is no image, or has no face, is told by the row.

        Raises:
            OSError: The face could not be written.
        """
        name = photograph.name
        try:
            require_regular(root / name)
            image = decode_whole((root / name).read_bytes())
        except (OSError, ValueError) as error:
            return Row(name, UNREADABLE, detail=" ".join(said_of(error).split()))
        faces = find_faces(self.detector, image, self.longest)
        face = choose_face(faces, image, self.rule)
        if face is None:
            return Row(name, SEVERAL if faces else NONE, len(faces))
        try:
            cut = align(image, face.points, self.size)
        except ValueError as error:
            return Row(name, NONE, len(faces), detail=" ".join(str(error).split()))
        output = folder / photograph.output
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, [_encode(cut, self.format)])
        points = tuple(face.points.astype(np.float64).ravel().tolist())
        return Row(name, ALIGNED, len(faces), face.score, points)


def _encode(pixels: Pixels, format: Literal["jpg", "png"]) -> bytes:
    if format == "png":
        return to_file(pixels)
    encoded: bytes = simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, colorsubsampling="444")
    return encoded


def align_photographs(
    root: Path,
    folder: Path,
    aligner: Aligner,
    journal: Journal,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int = 2,
    watch: Watch = unwatched,
) -> None:
    """Align this process's part of the photographs in `root` into `folder`; no collectives.

    Faces that an earlier run wrote are kept. Memory is bounded by the threads: each holds one
    photograph, of `data.images.MAX_PIXELS` at most.

    Args:
        root: Photographs in folders of any depth.
        folder: Gets the faces, in the same folders.
        aligner: How.
        journal: Of `folder`, for this process.
        rank: Which part is this one's.
        world_size: Number of parts.
        num_threads: That decode and detect.
        watch: Passes the rows on, and shows how far the work is.

    Raises:
        OSError: A folder cannot be read, or a face not be written.
    """
    suffix = f".{aligner.format}"
    photographs = list(share(walk(root, suffix), rank, world_size))
    journal.begin(photographs)
    mine = [p for p in photographs if p.name not in journal.known]

    def group(start: int) -> list[Row]:
        return [aligner.align_file(root, folder, p) for p in mine[start : start + _GROUP]]

    for rows in watch(ahead(group, range(0, len(mine), _GROUP), num_threads), len(mine)):
        journal.append(rows)
