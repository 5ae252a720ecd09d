"""Batches in the order of the stream, decoded ahead by threads, cut into slices for the ranks."""

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facescale.data.dataset import Dataset
from facescale.data.images import IMAGE_SIZE, Pixels, decode_into_
from facescale.data.order import EpochOrder, Order
from facescale.data.unreadable import UnreadableRecord, unreadable

ORDER_AHEAD = 2048
"""Samples whose order is computed at once: batch by batch it takes ten times as long, and
meanwhile no thread can begin an image."""

_LOGGED = 10  # unreadable records
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """This rank's slice of a global batch.

    Attributes:
        images: (b, 3, 112, 112) uint8 RGB, channels_last; b is 0 on a rank that gets nothing.
        labels: (b,) int64.
        position: Where the global batch begins in the stream of samples.
        offset: Where the slice begins in the global batch.
        indices: The images' numbers in the data set; (b,) int64. In place of an unreadable record
            stands the one that was taken for it, once the batch has been returned.
    """

    images: Tensor
    labels: Tensor
    position: int
    offset: int
    indices: NDArray[np.int64]


class Loader:
    """An endless iterator of batches; the batch at position p holds samples p to p + batch_size.

    The samples of a position depend on the seed and the data alone: not on the number of ranks, of
    threads, or on where the run began. Simplejpeg decodes without Python's lock, so threads are
    enough. `close`, or the end of a `with` block, ends the threads.

    Attributes:
        position: Of the batch that comes next; a new loader goes on from it.
        wait_s: Seconds that the caller has waited for batches, since the start.
        skipped: Indices of the unreadable records that this rank has passed over.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        position: int = 0,
        num_threads: int = 2,
        prefetch: int = 2,
        pin_memory: bool = False,
        on_error: Literal["stop", "skip"] = "stop",
        order: Order | None = None,
    ) -> None:
        """Start to decode the first batches.

        Args:
            dataset: Where the images come from.
            batch_size: Of the global batch, over all ranks; where it does not divide evenly, the
                first ranks get `ceil(batch_size / world_size)` and the last fewer, or none.
            seed: Decides the order of every epoch.
            rank: Which slice is this one's.
            world_size: Number of slices.
            position: Sample of the stream to begin at, 0 for a new run.
            num_threads: That decode.
            prefetch: Batches that are decoded ahead of the one asked for.
            pin_memory: Allocate batches in page-locked memory, for asynchronous copies to CUDA.
            on_error: At a record that cannot be read, raise `UnreadableRecord`, or take the next
                one that can; raise beyond 100 such records and 1 % of the set, or if none is left.
            order: Of the samples; `EpochOrder(len(dataset), seed)` when not given.
        """
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be stop or skip, got {on_error!r}")
        _check_least(1, batch_size=batch_size, num_threads=num_threads)
        _check_least(0, position=position, prefetch=prefetch)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        self.position, self.wait_s, self._pin_memory = position, 0.0, pin_memory
        self.skipped: set[int] = set()
        self._most_skipped = _most_skipped(len(dataset)) if on_error == "skip" else 0
        self._dataset, self._batch_size = dataset, batch_size
        self._order = order or EpochOrder(len(dataset), seed)
        share = -(-batch_size // world_size)
        self._offset = min(rank * share, batch_size)
        self._share, self._num_threads = min(share, batch_size - self._offset), num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._slices: deque[NDArray[np.int64]] = deque()
        self._ahead: deque[tuple[Batch, list[Future[None]]]] = deque()
        for _ in range(prefetch):
            self._begin_batch()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch; `UnreadableRecord` names a damaged record or one with a wrong label."""
        began = time.perf_counter()
        self._begin_batch()
        batch, parts = self._ahead.popleft()
        self.position += self._batch_size
        for part in parts:
            part.result()
        self.wait_s += time.perf_counter() - began
        return batch

    def _begin_batch(self) -> None:
        """Let the threads decode one batch more."""
        position = self.position + len(self._ahead) * self._batch_size
        indices = self._next_slice(position)
        shape = (self._share, IMAGE_SIZE, IMAGE_SIZE, 3)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        labels = torch.empty(self._share, dtype=torch.int64, pin_memory=self._pin_memory)
        step = max(1, -(-self._share // self._num_threads))
        parts = [
            self._pool.submit(
                self._decode_,
                pixels.numpy()[start : start + step],
                labels.numpy()[start : start + step],
                indices[start : start + step],
            )
            for start in range(0, self._share, step)
        ]
        # Seen as channels first, the bytes of an image stay as they were decoded: channels_last.
        images = pixels.permute(0, 3, 1, 2)
        self._ahead.append((Batch(images, labels, position, self._offset, indices), parts))

    def _next_slice(self, position: int) -> NDArray[np.int64]:
        """The images of this rank's slice of the global batch at `position`, after the last one."""
        if not self._slices:
            batches = -(-ORDER_AHEAD // max(1, self._share))
            firsts = position + self._offset + self._batch_size * np.arange(batches)
            places = firsts[:, None] + np.arange(self._share)
            self._slices.extend(self._order.indices(places.ravel()).reshape(places.shape))
        return self._slices.popleft()

    def _decode_(
        self, pixels: Pixels, labels: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> None:
        """Fill `pixels` (k, 112, 112, 3) and `labels` (k,) with the samples at `indices`."""
        for row, index in enumerate(indices.tolist()):
            while True:
                try:
                    labels[row] = self._decode_one_(pixels[row], index)
                    break
                except UnreadableRecord as error:
                    self._skip(error)
                    index = (index + 1) % len(self._dataset)
            indices[row] = index

    def _decode_one_(self, pixels: Pixels, index: int) -> int:
        """Fill `pixels` (112, 112, 3) with an image; returns its label."""
        try:
            encoded, label = self._dataset.read(index)
            if 0 <= label < self._dataset.num_classes:
                decode_into_(pixels, encoded)
                return label
        except UnreadableRecord:
            raise
        except (OSError, ValueError) as error:
            raise unreadable(self._dataset, index, error) from error
        reason = f"label {label} but num_classes is {self._dataset.num_classes}: one is wrong"
        raise UnreadableRecord(self._dataset.describe(index), reason, index)

    def _skip(self, error: UnreadableRecord) -> None:
        """Pass over a record, or raise the error if that is not wanted, or too many are."""
        if not self._most_skipped:
            raise error
        is_new = error.index not in self.skipped
        self.skipped.add(error.index)
        count = len(self.skipped)
        if count > self._most_skipped:  # also for a thread that meets known ones alone
            reason = f"{error.reason} (record {count} that is unreadable: too many to pass over)"
            raise UnreadableRecord(error.where, reason, error.index) from error
        if is_new and count <= _LOGGED:
            _log.warning("passed over %s: %s", error.where, error.reason)
            if count == _LOGGED:
                _log.warning("more unreadable records are counted, and not logged")

    def close(self) -> None:
        """End the threads, and forget what was decoded ahead."""
        self._pool.shutdown(cancel_futures=True)
        self._ahead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _most_skipped(num_images: int) -> int:
    return min(max(100, num_images // 100), num_images - 1)  # one is left to be taken


def _check_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
