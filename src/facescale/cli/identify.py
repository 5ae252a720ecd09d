"""`facescale identify`: who of a gallery is on these photographs, if anybody."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.embed import add_face_options, check_face_options, find_and_align
from facescale.cli.networks import add_run_options, check_network_options, open_network
from facescale.cli.parser import Parser, check_counts
from facescale.cli.terminal import escape, say, show, show_json, table

if TYPE_CHECKING:
    from torch import Tensor

    from facescale.evaluation.embedded import Embedded
    from facescale.evaluation.watchlist import Candidate, Watchlist

USAGE = "facescale identify GALLERY.npz PHOTO [PHOTO ...] [options]"
ABOUT = """
GALLERY.npz is a file of `facescale embed`, which says which model made it. A person is named where
the cosine to the sum of the person's embeddings is above a threshold, which --fpir finds in the
gallery: that fraction of the images of other people would be named wrongly."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("gallery", metavar="GALLERY.npz", help="the people, a file of facescale embed")
    add("photos", metavar="PHOTO", nargs="+", help="photographs, or files of facescale embed")
    add("--model", metavar="FILE", help="the gallery's model, if it was moved")
    add("--fpir", type=float, default=0.01, metavar="P", help="strangers that are named [0.01]")
    add("--threshold", type=float, metavar="X", help="cosine to be named, in place of --fpir")
    add("--candidates", type=int, default=1, metavar="K", help="people to show a photograph [1]")
    add("--faiss_above", type=int, metavar="N", help="search approximately above N people")
    add("--json", action="store_true", help="for programs")
    add_face_options(parser)
    add_run_options(parser)


def run(chosen: argparse.Namespace) -> None:
    """Embed the photographs with the gallery's model, and look each up."""
    check_face_options(chosen)
    check_counts(chosen, "candidates")
    if not 0 < chosen.fpir < 1:
        raise ValueError(f"--fpir is a rate between 0 and 1, got {chosen.fpir:g}")
    if chosen.threshold is not None and not -1 <= chosen.threshold <= 1:
        raise ValueError(f"--threshold is a cosine in [-1, 1], got {chosen.threshold:g}")
    from facescale.evaluation.embedded import read_embedded
    from facescale.evaluation.watchlist import make_watchlist

    gallery = read_embedded(chosen.gallery)
    people = make_watchlist(gallery, chosen.fpir, chosen.threshold)
    if chosen.faiss_above is not None and len(people.people) > chosen.faiss_above:
        from facescale.evaluation.ivf import IvfIndex

        people = replace(people, index=IvfIndex(people.templates))
    names, rows, problems = _probes(chosen, gallery)
    began = time.perf_counter()
    answers = people.identify(rows, chosen.candidates)
    ms = 1000 * (time.perf_counter() - began) / max(1, len(names))
    if chosen.json:
        show_json(_plain(names, answers, people, problems) | {"search_ms": ms})
    else:
        _show(names, answers, people, problems)
        say(f"search: {ms:.2f} ms a photograph")


def _probes(
    chosen: argparse.Namespace, gallery: "Embedded"
) -> "tuple[list[str], Tensor, dict[str, str]]":
    """Names and embeddings of what is to be looked up, and why a photograph has no face."""
    import torch

    from facescale.evaluation.embedded import read_embedded, warn_of_other_model

    names: list[str] = []
    rows: list[Tensor] = []
    problems: dict[str, str] = {}
    photos = [photo for photo in chosen.photos if Path(photo).suffix != ".npz"]
    for stored in (photo for photo in chosen.photos if photo not in photos):
        found = read_embedded(stored)
        warn_of_other_model(stored, found, gallery)
        names += found.files or [f"{stored} {i}" for i in range(len(found.labels))]
        rows.append(torch.from_numpy(found.embeddings))
    if photos:
        embedded, problems = _embed(photos, chosen, gallery)
        names += [photo for photo in photos if photo not in problems]
        rows += embedded
    return names, torch.cat(rows), problems


def _embed(
    photos: Sequence[str], chosen: argparse.Namespace, gallery: "Embedded"
) -> "tuple[list[Tensor], dict[str, str]]":
    """Embeddings of photographs by the gallery's model, opened as it was then.

    Photographs without a face have none; why is told by their names.
    """
    from facescale.distributed import processes
    from facescale.evaluation.faces import Faces, Photographs, read_points
    from facescale.evaluation.streaming import embed_stream

    model = gallery.model if chosen.model is None else gallery.model | {"model": chosen.model}
    options = argparse.Namespace(**vars(chosen) | model)
    check_network_options(options)
    points = None if chosen.points is None else read_points(chosen.points)
    faces = Faces(Photographs(photos), points, chosen.stretch)
    problems: dict[int, str] = {}
    if chosen.align:
        faces, problems = find_and_align(faces.dataset, chosen)
    with processes(chosen.device) as device:
        network = open_network(options, device)
        batches = embed_stream(
            network, faces.decode_range, 0, len(faces), chosen.batch_size, device, options.flip
        )
        rows = [batch.cpu() for batch in batches]
    return rows, {photos[index]: why for index, why in problems.items()}


def _show(
    names: Sequence[str],
    answers: "list[list[Candidate]]",
    people: "Watchlist",
    problems: dict[str, str],
) -> None:
    shown = table("photograph", "person", "cosine", left=2)
    for name, candidates in zip(names, answers, strict=True):
        for rank, candidate in enumerate(candidates):
            person = escape(candidate.person)
            if candidate.score <= people.threshold:
                person = f"[dim]unknown (nearest {person})[/]"
            shown.add_row("" if rank else escape(name), person, f"{candidate.score:.3f}")
    for name, why in problems.items():
        shown.add_row(escape(name), f"[dim]{escape(why)}[/]")
    show(shown)
    say(
        f"{len(people.people):,} people; a person is named where the cosine is above "
        f"{people.threshold:.3f}"
    )


def _plain(
    names: Sequence[str],
    answers: "list[list[Candidate]]",
    people: "Watchlist",
    problems: dict[str, str],
) -> dict[str, object]:
    found: list[dict[str, object]] = [
        {
            "photograph": name,
            "person": best[0].person if best[0].score > people.threshold else None,
            "candidates": [asdict(candidate) for candidate in best],
        }
        for name, best in zip(names, answers, strict=True)
    ]
    found += [
        {"photograph": name, "person": None, "candidates": [], "problem": why}
        for name, why in problems.items()
    ]
    return {"threshold": people.threshold, "photographs": found}
