"""The head: class centres on a mesh, sampled for each step, updated in the backward pass."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from facescale.distributed import Mesh, make_mesh
from facescale.head.aside import AtOnce
from facescale.head.centres import ClassCentres
from facescale.head.checks import (
    LabelCheck,
    check_call,
    check_choices,
    check_labels,
    check_values,
    refuse_threads_after_fork,
)
from facescale.head.draw import NONE, Sample, draw_rows
from facescale.head.gather import LabelGather
from facescale.head.lengths import normalise
from facescale.head.margins import (
    Others,
    TargetMargin,
    arcface,
    observe_,
    observe_cosines_,
    others_of,
    penalty,
    reweights,
    scaled,
)
from facescale.head.rules import SGD, RuleName, make_rule
from facescale.head.share import Share, joint_limit
from facescale.head.softmax import MarginSoftmax, own_cosines
from facescale.head.startvalues import ROUNDING, SAMPLING
from facescale.head.step import Products, Step
from facescale.head.step import logits_budget as default_budget
from facescale.head.walks import make_walk
from facescale.kernels.cuda import head_kernels_serve
from facescale.random import key


class MarginHead(nn.Module):
    """Margin softmax over `num_classes` identities that trains its own class centres.

    The centres are a matrix (num_classes, embedding_dim), split by class into `shards` parts; where
    there are more ranks than shards, each part has world / shards copies. Data parallel is
    `shards=1`, model parallel `shards=world` (the default), Partial FC a `sample_rate` below 1.

    `loss.backward()` updates the centres, by SGD with momentum on the sampled rows only, and sends
    the exact gradient to the embeddings. Gradients are sums over ranks, never means: sum those of
    the backbone over the world too. Call backward once per forward, before the next forward.

    Args:
        num_classes: Identities in all.
        embedding_dim: Size of an embedding.
        margin: What is asked of a sample's own class; see `margins.TargetMargin`.
        scale: Logits are scale * cosine; in (0, 300].
        sample_rate: Fraction of each shard that is drawn for the softmax of a step, in (0, 1]. The
            classes of the global batch join in any case.
        shards: Parts of the matrix; must divide the number of ranks. None: one for each rank.
        dtype: How the centres are stored: float32; bfloat16 or int8 (with a scale for each row),
            rounded at random; or float64 for proofs. The head computes in float32 or float64.
        momentum: Of SGD, in [0, 1); at 0 none is kept, which halves the memory.
        weight_decay: On sampled rows; at least 0.
        seed: Of start values, samples and rounding; the same on all ranks.
        device: Where the centres are.
        logits_budget: Bytes of logits kept between forward and backward; above, recomputed. None:
            256 MiB, and a sixteenth of the memory of a CUDA device.
        subcentres: Centres of each class; its logit is that of the nearest one. They are on one
            shard, and drawn together.
        interclass_filter: Cosines to other classes above it become 0 and get no gradient, as
            arcface_torch does against noisy labels; in (0, 1].
        optimizer: "sgd" with `momentum`, or "adamw"; see `rules`.
        products: How kernels on a CUDA device round the factors of a product: "tf32x3" (as accurate
            as float32), "tf32" or "bf16". Elsewhere products are those of float32.
        joint_samples: Copies of a shard compute with each other's samples, instead of summing
            gradients, where the other copies have so many samples or fewer. None: by device.
        overlap: Move the centres on a second stream of a CUDA device, while the backbone's backward
            pass is on the first. It changes no number.

    Raises:
        ValueError: A value out of its range, or `shards` that does not divide the world.
        MemoryError: More class centres than the machine has room for.
    """

    margin_fraction = 1.0
    """How much of the margin is asked for, from 0.0 (none) to 1.0; for a warm-up."""
    num_steps = 0
    """Draws so far: the key of the next one. A part of `state_dict`."""

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: TargetMargin | None = None,
        scale: float = 64.0,
        sample_rate: float = 1.0,
        shards: int | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
        device: torch.device | str = "cpu",
        logits_budget: int | None = None,
        subcentres: int = 1,
        interclass_filter: float | None = None,
        optimizer: RuleName = "sgd",
        products: Products = "tf32x3",
        joint_samples: int | None = None,
        overlap: bool = True,
    ) -> None:
        super().__init__()
        refuse_threads_after_fork()
        check_values(num_classes, embedding_dim, scale, sample_rate, momentum, weight_decay, seed)
        check_choices(subcentres, interclass_filter, products, optimizer, dtype)
        device = torch.device(device)
        self.margin = arcface(0.5) if margin is None else margin
        if isinstance(self.margin, nn.Module):
            self.margin.to(device)
        self.scale, self.sample_rate, self.interclass_filter = scale, sample_rate, interclass_filter
        self.seed, self.products = seed, products
        self.rule = make_rule(optimizer, momentum, weight_decay)
        self.logits_budget = default_budget(device) if logits_budget is None else logits_budget
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.mesh: Mesh = make_mesh(shards, device.type)
        self.centres = ClassCentres(
            num_classes,
            embedding_dim,
            self.mesh.shard,
            dtype=dtype,
            parts=self.rule.parts,
            subcentres=subcentres,
            counts=self.rule.counts,
            device=device,
            seed=seed,
        )
        self.centres.aside = self.centres.aside if overlap else AtOnce()
        self.joint_samples = joint_limit(device) if joint_samples is None else joint_samples
        self._gather_labels = LabelGather(self.mesh.world)
        self._check_labels = LabelCheck(num_classes, deferred=self._has_kernels())

    def _has_kernels(self) -> bool:
        """Whether the kernels of a CUDA device serve all steps."""
        plain = self.centres.subcentres == 1 and not reweights(self.margin)
        plain = plain and isinstance(self.rule, SGD)
        return plain and head_kernels_serve(self.centres.table, self.embedding_dim)

    @property
    def defers(self) -> bool:
        """Whether a step reads nothing from the device, and what is wrong is found out later."""
        return self._check_labels.deferred

    def extra_repr(self) -> str:
        """What `print(head)` says."""
        return (
            f"{self.num_classes} x {self.embedding_dim}, {self.margin}, scale={self.scale}, "
            f"sample_rate={self.sample_rate}, shards={self.mesh.shard.size}"
        )

    def get_extra_state(self) -> Tensor:
        """The number of steps, for `state_dict`."""
        return torch.tensor(self.num_steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue after so many steps."""
        self.num_steps = int(state)

    def draw(self, labels: Tensor, counts: list[int] | None = None) -> Sample:
        """Draw the rows of the next step. A collective; it may run before the embeddings are known.

        Args:
            labels: (b,) whole numbers in [0, num_classes); b may differ between ranks, and be 0.
            counts: b of every rank, the same list on all of them. Without it the host has to read
                the others' from the device where there are several ranks.

        Returns:
            What `forward` takes in place of the labels, once.

        Raises:
            ValueError: Wrong shape or `counts`, or a label outside the classes; the last on every
                rank alike. With kernels on a CUDA device such a label is reported by the next call,
                or by `settle`; its own step has a loss of NaN and changes nothing.
        """
        check_labels(labels)
        with torch.no_grad():
            everyones, counts = self._gather_labels(labels.long(), counts)
            bad = self._check_labels(everyones, self.num_steps)
            num_rows, start = (
                size // self.centres.subcentres
                for size in (len(self.centres), self.centres.rows.start)
            )
            place = everyones - start
            rows = None
            if self.sample_rate < 1.0:
                # At least one row, or the shard's part of the sum would be empty.
                num_sample = min(num_rows, max(1, int(self.sample_rate * num_rows)))
                draw = key(self.seed, SAMPLING, self.mesh.shard.rank, self.num_steps)
                rows, place = draw_rows(place, num_rows, num_sample, draw)
            else:
                place = place.where((place >= 0) & (place < num_rows), NONE)
            share = Share(self.mesh, counts, self.joint_samples)
            sample = Sample(self.num_steps, share, rows, place[share.batch], bad)
        self.num_steps += 1
        return sample

    def settle(self) -> None:
        """Wait for the device, and raise the error of the last step if it has not been raised yet.

        To be called after the last step. Raises ValueError as `draw` does.
        """
        self.centres.aside.wait()
        self._check_labels.settle()

    def forward(self, embeddings: Tensor, labels: Tensor | Sample, lr: float) -> Tensor:
        """This rank's share of the loss: the sum over its own samples / the global batch.

        Args:
            embeddings: (b, embedding_dim), any floating type, any length; b may differ between
                ranks and may be 0.
            labels: (b,) whole numbers in [0, num_classes), or what `draw` made of them.
            lr: Learning rate of the centres in this step, at least 0; 0 moves nothing.

        Returns:
            (), float32 or float64. NaN on all ranks, and no centre moves, where an embedding of
            any rank is not finite.

        Raises:
            ValueError: Wrong shapes, a negative `lr`, or a label outside the classes; the latter on
                every rank alike.
        """
        check_call(embeddings, labels, lr, self.embedding_dim)
        refuse_threads_after_fork()
        sample = labels if isinstance(labels, Sample) else self.draw(labels)
        share, drawn = sample.share, sample.share.group_counts[self.mesh.shard.rank]
        if len(embeddings) != drawn:
            raise ValueError(
                f"{len(embeddings)} embeddings, but the sample was drawn for {drawn} labels"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            unit, norm = normalise(embeddings.to(self.centres.format.numbers))
            batch, norms, all_norms = share.gather(unit.detach(), norm.detach())
            bad = all_norms.isnan().any()
            if sample.bad is not None:
                bad = bad | sample.bad
            if not self.defers and bool(bad):
                return unit.sum() * math.nan
            if self.training:
                observe_(self.margin, all_norms, bad)
            margin = scaled(self.margin, self.margin_fraction)
            step = self._step(batch, sample, bad, lr)
            alone = None if reweights(margin) else self.interclass_filter
            step = replace(step, others=self._others(margin, step), filter_above=alone)
            walk = make_walk(step)
            if self.defers and not walk.defers and bool(bad):  # else it has been asked
                return unit.sum() * math.nan
            loss: Tensor = MarginSoftmax.apply(unit, norm, walk, step, norms, margin)  # type: ignore[no-untyped-call]
            loss = loss + penalty(self.margin, norm) / share.global_batch
            return loss * torch.where(bad, math.nan, 1.0) if walk.defers else loss

    def _step(self, batch: Tensor, sample: Sample, bad: Tensor, lr: float) -> Step:
        return Step(
            centres=self.centres,
            replicate=sample.share.replicate,
            scale=self.scale,
            lr=lr,
            rule=self.rule,
            batch=batch,
            sample=sample,
            key=key(self.seed, ROUNDING, sample.step),
            logits_budget=self.logits_budget,
            bad=bad.int()[None],
            products=self.products,
        )

    def _others(self, margin: TargetMargin, step: Step) -> Others | None:
        """What this step makes of the cosines to other classes."""
        own = None
        if reweights(margin):
            own = own_cosines(step)
            if self.training:
                observe_cosines_(self.margin, step.sample.share.everyones(own))
        return others_of(margin, own, self.interclass_filter)
