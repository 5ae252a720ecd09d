"""The head: class centres on a mesh, a sample of them in the softmax, learning as it goes back."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from facescale.distributed import Mesh, make_mesh
from facescale.head.centres import ClassCentres
from facescale.head.draw import draw_rows
from facescale.head.gather import RowGather
from facescale.head.margins import Margin, arcface
from facescale.head.softmax import MarginSoftmax, make_walk
from facescale.head.step import Step
from facescale.random import generator

LOGITS_BUDGET = 256 << 20  # bytes
SAMPLING = 1  # key that keeps the draws apart from the start values


class MarginHead(nn.Module):
    """Margin softmax over `num_classes` identities that trains its own class centres.

    The centres are a matrix (num_classes, embedding_dim), cut by class into `shards` parts; where
    there are more ranks than shards, each part has world / shards copies. Data parallel is
    `shards=1`, model parallel `shards=world` (the default), Partial FC a `sample_rate` below 1.

    `loss.backward()` moves the centres, by SGD with momentum on the sampled rows only, and sends
    the exact gradient to the embeddings. Gradients are sums over ranks, never means: add up the
    backbone's over the world too. Call backward once per forward, before the next forward.

    Args:
        num_classes: Identities in all.
        embedding_dim: Size of an embedding.
        margin: What is asked of a sample's own class.
        scale: Logits are scale * cosine; in (0, 300].
        sample_rate: Fraction of each shard that joins the softmax in a step, in (0, 1]. The
            classes of the global batch always join.
        shards: Parts of the matrix; must divide the number of ranks. None: one part a rank.
        dtype: How the centres are stored: float32, bfloat16 or int8 (with a scale a row), the last
            two rounded at random; or float64 for proofs. The head computes in float32 or float64.
        momentum: Of the centres' SGD; at 0 none is kept, which halves the memory.
        weight_decay: Of the centres' SGD, on sampled rows.
        seed: Of start values and samples; the same on all ranks.
        device: Where the centres lie.
        logits_budget: Bytes of logits kept between forward and backward; above, recomputed.

    Raises:
        ValueError: A value out of its range, or `shards` that does not divide the world.
        MemoryError: More class centres than the machine has room for.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin | None = None,
        scale: float = 64.0,
        sample_rate: float = 1.0,
        shards: int | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
        device: torch.device | str = "cpu",
        logits_budget: int = LOGITS_BUDGET,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0.0 < sample_rate <= 1.0:
            raise ValueError(f"sample_rate must be in (0, 1], got {sample_rate}")
        if not 0.0 < scale <= 300.0:
            raise ValueError(f"scale must be in (0, 300], got {scale}")
        device = torch.device(device)
        self.margin = arcface(0.5) if margin is None else margin
        self.scale, self.sample_rate = scale, sample_rate
        self.momentum, self.weight_decay = momentum, weight_decay
        self.seed, self.logits_budget = seed, logits_budget
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.mesh: Mesh = make_mesh(shards, device.type)
        self.centres = ClassCentres(
            num_classes,
            embedding_dim,
            self.mesh.shard,
            dtype=dtype,
            momentum=momentum > 0,
            device=device,
            seed=seed,
        )
        self.num_steps = 0
        """Steps so far: the key of the next sample. Whoever resumes a run sets it."""
        self.signal = 0
        """A whole number >= 0 that this rank wants all to know; it travels with the next batch."""
        self.heard = 0
        """The largest `signal` of all ranks in the last forward pass, alike on all of them."""
        self._gather = RowGather(self.mesh.shard)
        self._gather_copies = RowGather(self.mesh.replicate)

    def extra_repr(self) -> str:
        """What `print(head)` says."""
        return (
            f"{self.num_classes} x {self.embedding_dim}, {self.margin}, scale={self.scale}, "
            f"sample_rate={self.sample_rate}, shards={self.mesh.shard.size}"
        )

    def forward(self, embeddings: Tensor, labels: Tensor, lr: float) -> Tensor:
        """This rank's share of the loss: the sum over its own samples / the global batch.

        Args:
            embeddings: (b, embedding_dim), any floating type, any length; b may differ between
                ranks and may be 0.
            labels: (b,) whole numbers in [0, num_classes).
            lr: Learning rate of the centres in this step; 0 moves nothing.

        Returns:
            (), float32 or float64. NaN on all ranks, and no centre moves, where an embedding of
            any rank is not finite.

        Raises:
            ValueError: Wrong shapes, or a label outside the classes; on every rank alike.
        """
        self._check_shapes(embeddings, labels)
        unit = functional.normalize(embeddings.to(self.centres.format.numbers))
        step = self._prepare(unit.detach(), labels.long(), lr)
        self.centres.begin_step(self.num_steps)
        self.num_steps += 1
        if step is None:
            return unit.sum() * math.nan
        return MarginSoftmax.apply(unit, make_walk(step))  # type: ignore[no-any-return, no-untyped-call]

    def _check_shapes(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(
                f"embeddings are {tuple(embeddings.shape)}, expected (batch, {self.embedding_dim})"
            )
        if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"labels are {tuple(labels.shape)} {labels.dtype}, expected whole numbers of "
                f"shape ({len(embeddings)},)"
            )

    def _prepare(self, unit: Tensor, labels: Tensor, lr: float) -> Step | None:
        """Gather the batch, draw the sample, lay out the blocks; None for a batch not finite."""
        finite = unit.isfinite().all(dim=1).long()
        batch, (group_labels, finite), counts, signal = self._gather(
            unit, torch.stack([labels, finite]), self.signal
        )
        _, (all_labels, finite), copies, self.heard = self._gather_copies(
            unit.new_empty(len(group_labels), 0), torch.stack([group_labels, finite]), signal
        )
        self._check_labels(all_labels)
        if not bool(finite.all()):
            return None
        rows = self._sample(all_labels) if self.sample_rate < 1.0 else None
        own, sample = self._own_rows(group_labels, rows)
        return Step(
            centres=self.centres,
            shard=self.mesh.shard,
            replicate=self.mesh.replicate,
            margin=self.margin,
            scale=self.scale,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch=batch,
            counts=counts,
            global_batch=max(sum(copies), 1),
            rows=rows,
            own_row=own,
            own_sample=sample,
            logits_budget=self.logits_budget,
        )

    def _check_labels(self, labels: Tensor) -> None:
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise ValueError(
                f"label {int(outside[0])} but num_classes is {self.num_classes}; labels run from 0 "
                f"to {self.num_classes - 1}: raise num_classes or mend the labels"
            )

    def _own_rows(self, group_labels: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Places among the drawn rows of own classes that are here, sorted; and whose they are."""
        own = group_labels - self.centres.classes.start
        (here,) = torch.where((own >= 0) & (own < len(self.centres)))
        place = own[here] if rows is None else torch.searchsorted(rows, own[here])
        place, order = place.sort()
        return place, here[order]

    def _sample(self, all_labels: Tensor) -> Tensor:
        """Rows of this shard that join; copies of a shard draw the same ones."""
        num_rows = len(self.centres)
        local = all_labels - self.centres.classes.start
        positives = local[(local >= 0) & (local < num_rows)].unique()
        key = (self.seed, SAMPLING, self.mesh.shard.rank, self.num_steps)
        # A shard that has classes shows at least one, or its part of the sum would be empty.
        num_sample = min(num_rows, max(1, int(self.sample_rate * num_rows)))
        return draw_rows(num_rows, positives, num_sample, generator(local.device, *key))
