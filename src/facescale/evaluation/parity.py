"""How far a network's answers on a verification set are from those of another form of it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from facescale.data.pairs import PairSet
from facescale.evaluation.embedding import embed_pairs
from facescale.evaluation.judgement import Judgement, judge_rows
from facescale.evaluation.verification import choose_folds


@dataclass(frozen=True, eq=False)
class Parity:
    """Two networks on one verification set.

    Attributes:
        before: Figures of the network.
        after: Figures of its other form, an exported graph for example.
        lowest_cosine: Of both embeddings of an image, over all images.
        mean_cosine: The mean of these cosines.
        difference: The largest difference of a coordinate of two unit embeddings.
    """

    before: Judgement
    after: Judgement
    lowest_cosine: float
    mean_cosine: float
    difference: float


def measure_parity(
    network: nn.Module,
    other: nn.Module,
    pairs: PairSet,
    batch_size: int = 64,
    flip: bool = True,
    device: torch.device | str = "cpu",
) -> Parity:
    """Embed the images of `pairs` with both networks, and judge both.

    Args:
        network: From pixels (b, 3, 112, 112), uint8 RGB, to embeddings (b, dim).
        other: Another form of it.
        pairs: The set.
        batch_size: Images per forward pass.
        flip: Add the embedding of the mirrored image.
        device: Where `network` lies.

    Raises:
        ValueError: The pairs cannot be judged, or an embedding has no direction.
    """
    folds = choose_folds(pairs.same)
    units = [embed_pairs(one, pairs, flip, batch_size, device)[0] for one in (network, other)]
    before, after = (
        judge_rows(pairs.name, unit[0::2], unit[1::2], pairs.same, folds, replicates=0)
        for unit in units
    )
    cosines = (units[0] * units[1]).sum(axis=1)
    difference = float(np.abs(units[0] - units[1]).max())
    return Parity(before, after, float(cosines.min()), float(cosines.mean()), difference)
