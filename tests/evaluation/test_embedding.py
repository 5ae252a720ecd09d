"""Embedding in shares, batches and both directions never changes what comes out."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facescale.data.images import Encoded
from facescale.data.pairs import PairSet, load_pairs
from facescale.distributed import make_mesh
from facescale.evaluation.embedding import embed_images, verify_pairs
from shared_data import shared_data

SIZE = 112


class Backbone(nn.Module):
    """A small network whose answer depends on the mode, and on left and right."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4 * 28 * 28, 6),
        )

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        embeddings: Tensor = self.layers((images.float() - 127.5) / 128)
        return embeddings


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(5, 250, (SIZE, SIZE, 3), dtype=np.uint8)


def noise_pairs(same: NDArray[np.bool_]) -> PairSet:
    """Pairs of noise images; of "one person" they are nearly the same image."""
    images: list[Encoded] = []
    for i, is_same in enumerate(same):
        other = picture(i) + picture(2000 + i) % 5 if is_same else picture(1000 + i)
        images += [picture(i), other]
    return PairSet("noise", images, same)


@dataclass(frozen=True)
class Pictures:
    """Noise images, and who asked for which."""

    asked: list[tuple[int, int, str]] = field(default_factory=list)

    def decode_range(self, start: int, stop: int) -> NDArray[np.uint8]:
        self.asked.append((start, stop, threading.current_thread().name))
        return np.stack([picture(i) for i in range(start, stop)])


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    network = Backbone().train()
    network(torch.randint(0, 256, (8, 3, SIZE, SIZE), dtype=torch.uint8))  # statistics of its own
    return network


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


def plainly(backbone: Backbone, pixels: NDArray[np.uint8]) -> tuple[Tensor, float]:
    """All images (n, height, width, 3) in one batch, written out."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    mirrored = torch.from_numpy(pixels[:, :, ::-1].copy()).permute(0, 3, 1, 2)
    backbone.eval()
    with torch.no_grad():
        one, two = backbone(images), backbone(mirrored)
    backbone.train()
    return one + two, torch.cat([one, two]).norm(dim=1).mean().item()


@pytest.mark.parametrize("batch_size", [1, 5, 22, 64])
def test_flip_is_added_whatever_the_batch(
    backbone: Backbone, pictures: Pictures, batch_size: int
) -> None:
    truth, length = plainly(backbone, pictures.decode_range(0, 22))
    embeddings, norms = embed_images(backbone, pictures.decode_range, 22, batch_size=batch_size)
    torch.testing.assert_close(embeddings, truth, rtol=1e-5, atol=1e-5)
    assert norms.mean().item() == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 30])  # 30 ranks: some have no image
def test_shares_of_the_ranks_make_up_the_whole(
    backbone: Backbone, pictures: Pictures, world_size: int
) -> None:
    blocks: list[Tensor] = []

    def keep(block: Tensor) -> Tensor:
        assert not block.is_inference()  # gloo cannot send these
        blocks.append(block)
        return block if len(block) else block.new_zeros(1, block.shape[1])

    for rank in range(world_size):
        embed_images(
            backbone,
            pictures.decode_range,
            22,
            batch_size=4,
            rank=rank,
            world_size=world_size,
            gather=keep,
        )
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    whole, norms = embed_images(
        backbone, pictures.decode_range, 22, gather=lambda _: torch.cat(blocks)
    )
    truth, length = plainly(backbone, pictures.decode_range(0, 22))
    torch.testing.assert_close(whole, truth, rtol=1e-5, atol=1e-5)
    assert norms.mean().item() == pytest.approx(length, rel=1e-5)


def embed_as_rank(rank: int, backbone: Backbone, pictures: Pictures) -> tuple[Any, float]:
    world = make_mesh().world
    embeddings, norms = embed_images(
        backbone,
        pictures.decode_range,
        22,
        batch_size=4,
        rank=rank,
        world_size=world.size,
        gather=world.gather_rows,
    )
    return embeddings.numpy(), norms.mean().item()


def test_every_rank_of_a_real_world_gets_everything(
    backbone: Backbone, pictures: Pictures, run_ranks: Callable[..., list[Any]]
) -> None:
    truth, length = plainly(backbone, pictures.decode_range(0, 22))
    for embeddings, xnorm in run_ranks(embed_as_rank, 3, backbone, pictures):
        np.testing.assert_allclose(embeddings, truth.numpy(), rtol=1e-5, atol=1e-5)
        assert xnorm == pytest.approx(length, rel=1e-5)


def test_each_image_is_decoded_once_in_another_thread_one_batch_ahead(
    backbone: Backbone, pictures: Pictures
) -> None:
    in_use: list[int] = []
    backbone.register_forward_hook(lambda *_: in_use.append(len(pictures.asked)))
    embed_images(backbone, pictures.decode_range, 22, batch_size=6, rank=1, world_size=2)
    assert [asked[:2] for asked in pictures.asked] == [(11, 17), (17, 22)]
    assert all(name != threading.current_thread().name for *_, name in pictures.asked)
    pictures.asked.clear()
    in_use.clear()
    embed_images(backbone, pictures.decode_range, 22, batch_size=2)
    ahead = [decoded - call // 2 - 1 for call, decoded in enumerate(in_use)]  # two calls a batch
    assert set(ahead) <= {0, 1}


def test_modes_are_restored_even_after_an_error(backbone: Backbone, pictures: Pictures) -> None:
    backbone.layers[1].eval()  # frozen statistics inside a network that trains
    before = [module.training for module in backbone.modules()]
    seen: list[bool] = []
    backbone.register_forward_hook(lambda module, *_: seen.append(module.training))
    embed_images(backbone, pictures.decode_range, 4)
    assert seen == [False, False]
    assert [module.training for module in backbone.modules()] == before

    def unreadable(start: int, stop: int) -> NDArray[np.uint8]:
        raise ValueError("image 3 is damaged")

    with pytest.raises(ValueError, match="image 3 is damaged"):
        embed_images(backbone, unreadable, 4)
    assert [module.training for module in backbone.modules()] == before


def test_pairs_of_like_images_are_told_from_unlike_ones(backbone: Backbone) -> None:
    pairs = noise_pairs(np.arange(40) % 2 == 0)
    found = verify_pairs(backbone, pairs, batch_size=16)
    _, length = plainly(backbone, pairs.decode(range(80)))
    assert found.accuracy > 0.9
    assert found.xnorm == pytest.approx(length, rel=1e-5)
    assert found.metrics("noise")["noise/xnorm"] == found.xnorm


def test_an_image_of_several_pairs_is_embedded_once(backbone: Backbone) -> None:
    pairs = noise_pairs(np.arange(20) % 2 == 0)
    repeated = PairSet("noise", [*pairs.images, *pairs.images], np.tile(pairs.same, 2))
    seen: list[int] = []
    backbone.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    once, twice = (verify_pairs(backbone, p, batch_size=16) for p in (pairs, repeated))
    assert sum(seen) == 2 * 2 * 40  # twice two ways
    assert twice.xnorm == pytest.approx(once.xnorm)
    assert twice.roc.auc == pytest.approx(once.roc.auc)


def test_a_set_that_cannot_be_judged_is_refused_before_any_image_is_decoded(
    backbone: Backbone,
) -> None:
    pairs = PairSet("alike", [b"not an image"] * 40, np.ones(20, dtype=bool))
    with pytest.raises(ValueError, match="fold 1 of 2 has no pair of different people"):
        verify_pairs(backbone, pairs)


def test_a_small_set_is_judged_in_fewer_folds_and_the_log_says_so(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = noise_pairs(np.arange(4) % 2 == 0)
    chosen, given = (verify_pairs(backbone, pairs, folds=folds) for folds in (None, 2))
    assert chosen.accuracy == given.accuracy
    assert "4 pairs fill 2 folds only, not the usual 10" in caplog.text
    with pytest.raises(ValueError, match="4 pairs cannot be cut into 10 folds"):
        verify_pairs(backbone, pairs, folds=10)


class Thumbnail(nn.Module):
    """The image itself, small and without its mean: a poor but honest recogniser."""

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(images.float(), 8).flatten(1)
        return small - small.mean(dim=1, keepdim=True)


def test_two_folds_of_lfw_through_the_whole_path() -> None:
    lfw = load_pairs(shared_data("lfw.bin"))
    assert lfw.same.reshape(10, 2, 300).all(axis=2).tolist() == [[True, False]] * 10
    two_folds = PairSet("lfw", lfw.images[:2400], lfw.same[:1200])
    assert 0.55 < verify_pairs(Thumbnail(), two_folds, folds=2).accuracy < 0.75
