"""From RecordIO to normalised batches: read, decode, random flip, collate, normalise."""

import io
import itertools
import os
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data

from facescale.acceleration.pixels import normalise
from facescale.data.dataset import Dataset, open_dataset
from facescale.data.images import IMAGE_SIZE, Pixels, decode
from facescale.data.loader import Loader
from facescale.data.transforms import Augment
from facescale.datasets.recordio import write_recordio
from facescale.timing.interleave import Case, Contender, Prepare

BATCHES = 32  # per step, so that the prefetched batches discarded at its end are a small part
PREFETCH = 2
SCALE = 127.5  # arcface_torch's
SYNTHETIC_IMAGES = 2048
PROCESS = 600 << 20  # bytes of a process with all imports and its batches


def loader(
    threads: int = 1,
    batch: int = 64,
    folder: str = "",
    *,
    name: str = "loader",
    device: str = "cpu",
) -> Case:
    """Batches on `threads` cores, from a RecordIO `folder` or of generated photographs.

    A step is 32 batches of a loader that starts with nothing decoded.

    Raises:
        ValueError: `device` is not "cpu".
    """
    if device != "cpu":
        raise ValueError(f"a loader works on the CPU; time it without --device {device}")

    def contender(title: str, build: Callable[[Dataset, int, int], Prepare]) -> Contender:
        return Contender(title, partial(_build, build, folder, threads, batch), PROCESS).tuned()

    return Case(
        name=name,
        title=f"loader, {threads} threads on as many cores, batch {batch}, "
        + (folder or "generated photographs"),
        contenders=(
            contender("facescale", _own),
            contender("dataloader", partial(_dataloader, decoder=decode_by_pillow)),
            contender("dataloader-turbo", partial(_dataloader, decoder=decode)),
        ),
        samples=BATCHES * batch,
    )


def _build(
    build: Callable[[Dataset, int, int], Prepare], folder: str, threads: int, batch: int
) -> Prepare:
    """`build` in a process that is restricted to `threads` cores."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(1)  # more would compete with the decoders for the cores
    return build(open_dataset(folder) if folder else photographs(), threads, batch)


def _own(dataset: Dataset, threads: int, batch: int) -> Prepare:
    augment, positions = Augment(), itertools.count(0, BATCHES * batch)

    def step() -> None:
        with Loader(
            dataset,
            batch,
            seed=0,
            position=next(positions),
            num_threads=threads,
            prefetch=PREFETCH,
        ) as batches:
            for one in itertools.islice(batches, BATCHES):
                images = augment(one.images, seed=0, position=one.position)
                normalise(images, torch.float32, SCALE)

    return lambda: step


def _dataloader(
    dataset: Dataset, threads: int, batch: int, decoder: Callable[[bytes], Pixels]
) -> Prepare:
    """Torch's DataLoader; on a single core without worker processes."""
    faces = TorchFaces(dataset, decoder)
    batches: data.DataLoader[tuple[Tensor, int]] = data.DataLoader(
        faces,
        batch,
        sampler=data.RandomSampler(faces, replacement=True, num_samples=BATCHES * batch),
        num_workers=threads if threads > 1 else 0,
        persistent_workers=threads > 1,
        multiprocessing_context="fork" if threads > 1 else None,  # a mapped file cannot be pickled
    )

    def step() -> None:
        for _ in batches:
            pass

    return lambda: step


class TorchFaces(data.Dataset[tuple[Tensor, int]]):
    """As arcface_torch: each image to PIL, flipped there, to float planes, normalised."""

    def __init__(self, dataset: Dataset, decoder: Callable[[bytes], Pixels]) -> None:
        self.dataset = dataset
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (3, 112, 112) and label."""
        encoded, label = self.dataset.read(index)
        assert isinstance(encoded, bytes)
        image = Image.fromarray(self.decoder(encoded))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255).sub_(0.5).div_(0.5), label


def decode_by_pillow(encoded: bytes) -> Pixels:
    """Pixels (112, 112, 3)."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def photographs(num_images: int = SYNTHETIC_IMAGES) -> Dataset:
    """A RecordIO set of JPEGs as large as aligned faces; its files are already deleted."""
    random = np.random.default_rng(0)

    def photograph() -> bytes:
        coarse = random.integers(0, 256, (IMAGE_SIZE // 8, IMAGE_SIZE // 8, 3), np.uint8)
        size = (IMAGE_SIZE, IMAGE_SIZE)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        noise = random.normal(0, 4, smooth.shape)
        pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
        import simplejpeg  # not before photographs are made

        return bytes(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"))

    with tempfile.TemporaryDirectory() as folder:
        write_recordio(folder, ((photograph(), 0) for _ in range(num_images)), 1)
        return open_dataset(folder)  # which has mapped them into memory
