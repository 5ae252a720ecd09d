"""Embeddings of many images in a `.npz` file, with their identities and their model."""

import json
import logging
import secrets
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from facescale.evaluation.verification import Ints
from facescale.files import naming

ROWS_AT_ONCE = 1 << 16
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Embedded:
    """What a file of embeddings holds.

    Attributes:
        embeddings: (n, dim) float32, not normalised.
        labels: (n,) the person of each.
        people: Names of the people, by label.
        files: Where each image came from; empty if that is its number in a data set.
        model: How the model was opened, as options of `facescale embed`.
    """

    embeddings: NDArray[np.float32]
    labels: Ints
    people: Sequence[str]
    files: Sequence[str]
    model: dict[str, Any]


def write_embedded(
    path: Path,
    batches: Iterable[Tensor],
    num_images: int,
    labels: Ints,
    people: Sequence[str],
    files: Sequence[str],
    model: dict[str, Any],
) -> None:
    """Write batches (b, dim) to `path` one by one; the file is replaced when it is complete.

    `labels` (n,) is read after the last batch. Other arguments as in `Embedded`.

    Raises:
        OSError: It could not be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with naming(path), zipfile.ZipFile(partial, "x", zipfile.ZIP_STORED) as archive:
            _write_rows(archive, batches, num_images)
            texts = {"people": people, "files": files, "model": [json.dumps(model)]}
            arrays = {"labels": labels} | {k: np.array(v, np.str_) for k, v in texts.items()}
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        with naming(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_rows(archive: zipfile.ZipFile, batches: Iterable[Tensor], num_images: int) -> None:
    """Write the rows as one array without holding all of them in memory."""
    with archive.open("embeddings.npy", "w", force_zip64=True) as file:
        written = 0
        for batch in batches:
            rows = np.ascontiguousarray(batch.float().cpu().numpy())
            if not written:
                shape = (num_images, rows.shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(rows.astype("<f4", copy=False).tobytes())
            written += len(rows)
    assert written == num_images


def read_embedded(path: Path | str) -> Embedded:
    """Read a file that `facescale embed` wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another kind of file, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; facescale embed MODEL SOURCE OUT makes one")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Embedded(
                embeddings=arrays["embeddings"].astype(np.float32, casting="same_kind", copy=False),
                labels=arrays["labels"].astype(np.int64, casting="same_kind", copy=False),
                people=arrays["people"].tolist(),
                files=arrays["files"].tolist(),
                model=json.loads(arrays["model"][0]),
            )
    except Exception as error:  # damaged archives raise errors of every kind
        raise ValueError(f"{path} is not a file of facescale embed: {error}") from error
    if fault := _fault(found):
        raise ValueError(f"{path} is not a file of facescale embed: {fault}")
    return found


def _fault(found: Embedded) -> str:
    """What is wrong with the arrays of a file; empty if they belong to each other."""
    embeddings, labels = found.embeddings, found.labels
    if embeddings.ndim != 2 or not embeddings.size:
        return f"embeddings {embeddings.shape} are not rows of numbers"
    if labels.shape != embeddings.shape[:1]:
        return f"labels {labels.shape} for {len(embeddings)} embeddings"
    if not (isinstance(found.people, list) and isinstance(found.files, list)):
        return "people or files are not a list"
    outside = labels[(labels < 0) | (labels >= len(found.people))]
    if len(outside):
        return f"label {outside[0]}, but there are {len(found.people)} people"
    if len(found.files) not in (0, len(labels)):
        return f"{len(found.files)} files for {len(labels)} embeddings"
    return "" if isinstance(found.model, dict) else "the model is not a set of options"


def warn_of_other_model(path: Path | str, probes: Embedded, gallery: Embedded) -> None:
    """Warn where the probes in `path` say another model, or other options of it, than the gallery.

    The model may be the same under another path, so this is no error.
    """
    differ = sorted(
        key
        for key in probes.model.keys() | gallery.model.keys()
        if probes.model.get(key) != gallery.model.get(key)
    )
    if differ:
        log.warning(
            "%s was not embedded as the gallery was: %s; cosines of two models mean nothing",
            path,
            ", ".join(f"{k} is {probes.model.get(k)} and {gallery.model.get(k)}" for k in differ),
        )


def person_templates(embedded: Embedded) -> tuple[Tensor, Ints]:
    """One unit row for each person with an image, the sum of the unit embeddings; and the labels.

    Returns:
        (people, dim) in float32, and their labels (people,), rising.

    Raises:
        ValueError: Embeddings are zero or not finite.
    """
    people, place = np.unique(embedded.labels, return_inverse=True)
    sums = torch.zeros(len(people), embedded.embeddings.shape[1])
    for start in range(0, len(place), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        rows = unit_rows(embedded.embeddings[part], start)
        sums.index_add_(0, torch.from_numpy(place[part]), rows)
    return normalize(sums, out=sums), people


def unit_rows(embeddings: NDArray[np.float32], first: int = 0) -> Tensor:
    """(n, dim) rows of length 1; ValueError if one has no direction.

    `first` is the number of the first row in the error.
    """
    rows = torch.from_numpy(embeddings)
    lengths = rows.norm(dim=1, keepdim=True)
    bad = torch.nonzero(~((lengths > 0) & lengths.isfinite()).flatten()).flatten().tolist()
    if bad:
        raise ValueError(
            f"embedding number {first + bad[0]} is zero or not finite; embed again with a model "
            "that has not diverged"
        )
    unit: Tensor = rows / lengths
    return unit
