"""Templates: several images of a person pooled into one embedding, for 1:1 and 1:N.

Computed as in InsightFace's `eval_ijbc.py` and `ijb_1n.py`. A template is the sum over its media
of the mean over a media's images, scaled to length 1. Mean and sum are linear, so an image can be
added to its template's sum when it is embedded, and its embedding need not be kept.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facescale.distributed import Group
from facescale.evaluation.identification import ClosedSet, OpenSet, closed_set, open_set
from facescale.evaluation.ijb import IjbSet, Subjects, mates
from facescale.evaluation.streaming import Watch, agreed_dim, embed_stream, unwatched
from facescale.evaluation.thresholds import TarAtFar, for_json, tar_table
from facescale.evaluation.verification import Floats, Ints, Roc, roc

PAIRS_AT_ONCE = 16_384
LEAST_ALIKE = 0.3
"""Mean cosine of images and their mirror images; a trained network has far more, halves of one
embedding have about 0."""
ONE_RANK = Group()
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weighting:
    """How an image counts in its template; the defaults are InsightFace's (N1, D1, F2).

    Attributes:
        flip: Add the embedding of the mirrored image.
        norm: Keep the length of an image's embedding; without, each is scaled to length 1.
        detector: Multiply by the detector's score.
    """

    flip: bool = True
    norm: bool = True
    detector: bool = True


@dataclass(frozen=True, eq=False)
class Templates:
    """Unit embeddings of templates.

    Attributes:
        numbers: (t,) the templates' numbers, rising.
        rows: (t, dim) float64, of length 1.
    """

    numbers: Ints
    rows: Tensor

    def of(self, numbers: Ints) -> Tensor:
        """(n, dim) embeddings of the templates called `numbers`, (n,)."""
        return self.rows[self.places(numbers)]

    def places(self, numbers: Ints) -> Tensor:
        """(n,) rows of the templates called `numbers`."""
        return torch.from_numpy(np.searchsorted(self.numbers, numbers)).to(self.rows.device)


@dataclass(frozen=True, eq=False)
class IjbResult:
    """What a model reaches on IJB-B or IJB-C.

    Attributes:
        name: Of the set.
        num_images: Embedded images.
        num_templates: Templates of them.
        roc: The curve of 1:1.
        tars: TAR at FAR 1e-6 to 1e-1.
        scores: (p,) cosine of each pair.
        closed: 1:N as InsightFace counts it; None where the set has no lists for 1:N.
        open: TPIR at FPIR of each gallery as the protocol of IJB counts it.
    """

    name: str
    num_images: int
    num_templates: int
    roc: Roc
    tars: list[TarAtFar]
    scores: Floats
    closed: ClosedSet | None
    open: list[OpenSet]

    def figures(self) -> dict[str, Any]:
        """All but curve and scores as plain values, fit for JSON."""
        figures = {
            "name": self.name,
            "images": self.num_images,
            "templates": self.num_templates,
            "pairs": len(self.scores),
            "auc": self.roc.auc,
            "eer": self.roc.eer,
            "tar_at_far": [asdict(row) for row in self.tars],
            "identification": None if self.closed is None else asdict(self.closed),
            "open_set": [asdict(gallery) for gallery in self.open],
        }
        return {key: for_json(value) for key, value in figures.items()}


def run_ijb(
    ijb: IjbSet,
    network: nn.Module,
    weighting: Weighting = Weighting(),
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    world: Group = ONE_RANK,
    watch: Watch = unwatched,
) -> IjbResult:
    """Embed the aligned images and judge; every rank embeds its share and gets the same answer.

    Args:
        ijb: The set.
        network: From pixels (b, 3, 112, 112), uint8 RGB, to embeddings (b, dim), on `device`.
        weighting: How an image counts in its template.
        batch_size: Images per forward pass.
        device: Where the network lies.
        world: The ranks that take part.
        watch: Is given this rank's batches and how many images they are, and passes them on.
    """
    start, stop = (len(ijb) * r // world.size for r in (world.rank, world.rank + 1))
    with world.all_or_none():
        ijb.require_images(start, stop)
    batches = embed_stream(
        network, ijb.decode_range, start, stop, batch_size, device, flip=weighting.flip
    )
    batches = watch(batches, stop - start)
    return judge(ijb, pool(ijb, batches, start, weighting, device, world), world)


def run_ijb_from_rows(
    ijb: IjbSet,
    rows: NDArray[np.float32],
    weighting: Weighting = Weighting(),
) -> IjbResult:
    """Judge embeddings as InsightFace stores them: of an image, and beside it of its mirror.

    Args:
        ijb: The set.
        rows: (images, 2 dim), in the order of the set's lists; may be mapped into memory.
        weighting: How an image counts in its template.

    Raises:
        ValueError: Not one row of numbers for each image, or an odd number of columns.
    """
    fits = rows.ndim == 2 and len(rows) == len(ijb) and rows.shape[1] % 2 == 0
    if not fits or rows.dtype.kind not in "fiu":
        raise ValueError(
            f"rows {rows.shape} of {rows.dtype} do not fit {ijb.name} with {len(ijb)} images; "
            "a row is the embedding of an image followed by that of its mirror image, as numbers"
        )
    _warn_of_cut_embeddings(rows)

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), 1024):
            part = np.asarray(rows[start : start + 1024], np.result_type(rows.dtype, np.float32))
            plain, mirrored = torch.tensor(part).chunk(2, dim=1)
            yield plain + mirrored if weighting.flip else plain

    return judge(ijb, pool(ijb, batches(), 0, weighting))


def _warn_of_cut_embeddings(rows: NDArray[np.float32]) -> None:
    """Warn where the halves of the first rows are not alike, as an image and its mirror are."""
    plain, mirrored = torch.tensor(np.asarray(rows[:1024], np.float32)).chunk(2, dim=1)
    alike = float(torch.cosine_similarity(plain, mirrored).mean())
    if alike < LEAST_ALIKE:
        log.warning(
            "the two halves of a row have a mean cosine of %.2f, but those of an image and its "
            "mirror image are near 1: is a row one embedding without that of the mirror image?",
            alike,
        )


def pool(
    ijb: IjbSet,
    batches: Iterable[Tensor],
    start: int,
    weighting: Weighting,
    device: torch.device | str = "cpu",
    world: Group = ONE_RANK,
) -> Templates:
    """Sum embeddings, which come in batches (b, dim) from image `start` on, into templates.

    Raises:
        ValueError: A template has no direction: its embeddings are zero or not finite.
    """
    numbers, place, weights = _places(ijb.templates, ijb.media)
    if weighting.detector:
        weights = weights * ijb.scores
    sums = None
    for batch in batches:
        part = slice(start, start + len(batch))
        start = part.stop
        rows = batch.double()
        if not weighting.norm:
            rows = rows / rows.norm(dim=1, keepdim=True)
        rows = rows * torch.from_numpy(weights[part]).to(rows.device).unsqueeze(1)
        if sums is None:
            sums = rows.new_zeros(len(numbers), rows.shape[1])
        sums.index_add_(0, torch.from_numpy(place[part]).to(rows.device), rows)
    dim = agreed_dim(sums, device, world)
    if sums is None:  # more ranks than images
        sums = torch.zeros(len(numbers), dim, dtype=torch.float64, device=device)
    world.all_reduce_(sums)
    lengths = sums.norm(dim=1, keepdim=True)
    bad = torch.nonzero(~((lengths > 0) & lengths.isfinite()).flatten()).flatten().tolist()
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(numbers)} templates have no direction (template "
            f"{numbers[bad[0]]}): embeddings or detector scores are zero or not finite"
        )
    return Templates(numbers, sums / lengths)


def _places(templates: Ints, media: Ints) -> tuple[Ints, Ints, Floats]:
    """The templates; of each image the place of its template, and 1 / the images of its media."""
    numbers, place = np.unique(templates, return_inverse=True)
    _, media_place = np.unique(media, return_inverse=True)
    keys = place * (media_place.max(initial=0) + 1) + media_place
    _, key_place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return numbers, place, 1.0 / counts[key_place]


def judge(ijb: IjbSet, templates: Templates, world: Group = ONE_RANK) -> IjbResult:
    """Compare the pairs and search the galleries of `ijb` with its templates."""
    scores = score_pairs(templates, ijb.pairs, world)
    curve = roc(scores, ijb.same)
    return IjbResult(
        name=ijb.name,
        num_images=len(ijb),
        num_templates=len(templates.numbers),
        roc=curve,
        tars=tar_table(curve, int(ijb.same.sum())),
        scores=scores,
        closed=_closed(ijb, templates) if ijb.galleries else None,
        open=[_open(gallery, ijb.probes, templates) for gallery in ijb.galleries],
    )


def score_pairs(templates: Templates, pairs: Ints, world: Group = ONE_RANK) -> Floats:
    """(p,) cosine of each pair (p, 2) of template numbers; the ranks share the work."""
    start, stop = (len(pairs) * r // world.size for r in (world.rank, world.rank + 1))
    scores = templates.rows.new_empty(stop - start)
    for begin in range(start, stop, PAIRS_AT_ONCE):
        part = pairs[begin : min(begin + PAIRS_AT_ONCE, stop)]
        left, right = templates.of(part[:, 0]), templates.of(part[:, 1])
        scores[begin - start : begin - start + len(part)] = left.mul_(right).sum(dim=1)
    gathered: Floats = world.gather_rows(scores).cpu().numpy()
    return gathered


def _closed(ijb: IjbSet, templates: Templates) -> ClosedSet:
    """All probes against both galleries together, as `ijb_1n.py` does it."""
    both = Subjects(*(np.concatenate(column) for column in zip(*ijb.galleries, strict=True)))
    order = np.argsort(both.templates, kind="stable")
    gallery = Subjects(both.templates[order], both.subjects[order])
    return closed_set(
        templates.of(ijb.probes.templates),
        templates.of(gallery.templates),
        mates(ijb.probes.subjects, gallery.subjects),
    )


def _open(gallery: Subjects, probes: Subjects, templates: Templates) -> OpenSet:
    """All probes against one gallery; those whose subject is not in it should be turned away."""
    return open_set(
        templates.of(probes.templates),
        templates.of(gallery.templates),
        probes.subjects,
        gallery.subjects,
    )
