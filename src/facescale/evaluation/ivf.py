"""Approximate search of a large gallery by faiss (extra `search`)."""

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


class IvfIndex:
    """An inverted file: the gallery in clusters, of which a search looks into the nearest ones.

    Its answers are approximate: a person whose cluster is not looked into is not found. Building
    it takes minutes for a million people, so it pays for many searches only.

    Attributes:
        clusters: Number of clusters.
        probed: How many of them a search looks into.
    """

    def __init__(self, gallery: Tensor, probed_part: float = 0.02) -> None:
        """Sort the gallery (g, dim), unit rows, into 4 sqrt(g) clusters.

        Args:
            gallery: Unit rows in float32 on the CPU.
            probed_part: Part of the clusters that a search looks into, in (0, 1]; 1 is exact.

        Raises:
            ImportError: faiss is not installed.
        """
        if find_spec("faiss") is None:
            raise ImportError("no faiss; it comes with pip install 'facescale[search]'")
        import faiss

        if not 0 < probed_part <= 1:
            raise ValueError(f"probed_part must be in (0, 1], got {probed_part}")
        rows = gallery.numpy()
        self.clusters = max(1, min(round(4 * math.sqrt(len(rows))), len(rows) // 39))
        self.probed = max(1, round(probed_part * self.clusters))
        inner_product = faiss.METRIC_INNER_PRODUCT
        flat = faiss.IndexFlatIP(rows.shape[1])
        self._index: Any = faiss.IndexIVFFlat(flat, rows.shape[1], self.clusters, inner_product)
        self._index.train(rows)
        self._index.add(rows)
        self._index.nprobe = self.probed

    def __call__(self, probes: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores (p, k), falling, and rows of the gallery (p, k); at most as many as there are.

        ValueError if probes (p, dim) are of another length than the gallery's rows.
        """
        if probes.shape[1] != self._index.d:
            raise ValueError(
                f"probes have {probes.shape[1]} numbers each, the gallery {self._index.d}; are "
                "they from one model?"
            )
        k = min(k, self._index.ntotal)
        scores, places = self._index.search(probes.numpy(), k)
        short = (places < 0).any(axis=1)  # so few entries in the clusters: look into all of them
        if short.any():
            self._index.nprobe = self.clusters
            scores[short], places[short] = self._index.search(probes.numpy()[short], k)
            self._index.nprobe = self.probed
        return torch.from_numpy(scores), torch.from_numpy(places)
