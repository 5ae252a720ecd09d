"""`facescale identify`: who of a gallery is on these photographs, if anybody."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from facescale.cli.embed import add_face_options
from facescale.cli.networks import open_network
from facescale.distributed import processes
from facescale.evaluation.embedded import Embedded, read_embedded
from facescale.evaluation.faces import Faces, Photographs, read_points
from facescale.evaluation.ivf import IvfIndex
from facescale.evaluation.streaming import embed_stream
from facescale.evaluation.watchlist import Candidate, Watchlist, make_watchlist

HELP = "find out who of a gallery is on photographs"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    parser.add_argument("gallery", help="the people, a file of facescale embed")
    parser.add_argument("photos", nargs="+", help="photographs, or files of facescale embed")
    parser.add_argument("--model", type=str, help="where the gallery's model lies now")
    parser.add_argument("--fpir", type=float, default=0.01, help="strangers taken for somebody")
    parser.add_argument("--threshold", type=float, help="lowest cosine, in place of --fpir")
    parser.add_argument("--candidates", type=int, default=1, help="people to name a photograph")
    parser.add_argument(
        "--faiss_above", type=int, help="search approximately, with faiss, above so many people"
    )
    parser.add_argument("--json", type=str, help="write the answers to this file")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add_face_options(parser)


def run(chosen: Namespace) -> None:
    """Embed the photographs with the gallery's model, and look each up."""
    if chosen.candidates < 1:
        raise ValueError(f"--candidates must be at least 1, got {chosen.candidates}")
    gallery = read_embedded(chosen.gallery)
    people = make_watchlist(gallery, chosen.fpir, chosen.threshold)
    if chosen.faiss_above is not None and len(people.people) > chosen.faiss_above:
        people = replace(people, index=IvfIndex(people.templates))
    names, rows = _probes(chosen, gallery)
    answers = people.identify(rows, chosen.candidates)
    _show(names, answers, people)
    if chosen.json is not None:
        _write(Path(chosen.json), names, answers, people)


def _probes(chosen: Namespace, gallery: Embedded) -> tuple[list[str], Tensor]:
    """Names and embeddings of what is to be looked up."""
    names: list[str] = []
    rows: list[Tensor] = []
    photos = [photo for photo in chosen.photos if Path(photo).suffix != ".npz"]
    for stored in (Path(photo) for photo in chosen.photos if photo not in photos):
        found = read_embedded(stored)
        names += found.files or [f"{stored} {i}" for i in range(len(found.labels))]
        rows.append(torch.from_numpy(found.embeddings))
    if photos:
        names += photos
        rows += _embed(photos, chosen, gallery)
    return names, torch.cat(rows)


def _embed(photos: Sequence[str], chosen: Namespace, gallery: Embedded) -> list[Tensor]:
    """Embeddings of photographs by the gallery's model, opened as it was then."""
    options: Namespace = chosen.clone()
    options.update(Namespace(gallery.model))  # type: ignore[no-untyped-call]
    if chosen.model is not None:
        options.model = chosen.model
    points = None if chosen.points is None else read_points(chosen.points)
    faces = Faces(Photographs(photos), points, chosen.stretch)
    with processes(chosen.device) as device:
        network = open_network(options, device)
        batches = embed_stream(
            network, faces.decode_range, 0, len(faces), chosen.batch_size, device, options.flip
        )
        return [batch.cpu() for batch in batches]


def _show(names: Sequence[str], answers: list[list[Candidate]], people: Watchlist) -> None:
    terminal = Console(highlight=False, width=10_000)  # no name is cut
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for title in ("photograph", "person", "cosine"):
        table.add_column(title, no_wrap=True, justify="right" if title == "cosine" else "left")
    for name, candidates in zip(names, answers, strict=True):
        for rank, candidate in enumerate(candidates):
            known = candidate.score > people.threshold
            person = escape(candidate.person)
            person = person if known else f"[dim]unknown (nearest {person})[/]"
            table.add_row(escape(name) if not rank else "", person, f"{candidate.score:.3f}")
    terminal.print(table)
    terminal.print(
        f"{len(people.people):,} people; a person is named where the cosine is above "
        f"{people.threshold:.3f}"
    )


def _write(
    path: Path, names: Sequence[str], answers: list[list[Candidate]], people: Watchlist
) -> None:
    found = [
        {
            "photograph": name,
            "person": best[0].person if best[0].score > people.threshold else None,
            "candidates": [asdict(candidate) for candidate in best],
        }
        for name, best in zip(names, answers, strict=True)
    ]
    path.write_text(json.dumps({"threshold": people.threshold, "photographs": found}, indent=1))
