"""Throughput with one rank of one thread and with two or more, interleaved step by step.

Prints the figures of docs/parallelism.md:  python cluster/scaling.py
The ranks of all worlds run at the same time and wait for their turn, so that a drift of the machine
affects all. Weak scaling: each rank has its own batch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from facescale.allocator import keep_freed_memory
from facescale.config import BackboneConfig, Config, DataConfig, TrainConfig
from facescale.distributed import Group, world_group
from facescale.timing.baselines import OwnHead
from facescale.training import build, train_step

Step = Callable[[], None]


def network(name: str, batch_size: int) -> Step:
    """A whole training step: backbone, head over 10,000 identities, optimizer."""
    config = Config(
        data=DataConfig(path="synthetic", num_classes=10_000, num_images=20_000),
        backbone=BackboneConfig(name=name),
        train=TrainConfig(batch_size=batch_size, steps=1000),
        device="cpu",
    )
    state = build(config, torch.device("cpu"))
    batches = state.loader()

    def step() -> None:
        train_step(state, next(batches))

    return step


def head(num_classes: int, sample_rate: float, batch_size: int) -> Step:
    """The head alone."""
    contender = OwnHead(num_classes, 512, sample_rate)
    random = torch.Generator().manual_seed(world_group().rank)

    def step() -> None:
        embeddings = torch.randn(batch_size, 512, generator=random).requires_grad_()
        labels = torch.randint(num_classes, (batch_size,), generator=random)
        contender.step(embeddings, labels)

    return step


CASES: dict[str, tuple[Callable[..., Step], tuple[object, ...]]] = {
    "mbf, 32 images a rank": (network, ("mbf", 32)),
    "head, 360,232 identities at 0.1, 64 a rank": (head, (360_232, 0.1, 64)),
    "head, 360,232 identities at 1.0, 64 a rank": (head, (360_232, 1.0, 64)),
}


def rank_main(pipe: Connection, case: str, rank: int, size: int, store: Path) -> None:
    """Main function of a rank: build, then step on request and answer with the seconds."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if size > 1:
        meeting = dist.FileStore(str(store), size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=meeting, rank=rank, world_size=size)
    make, arguments = CASES[case]
    step = make(*arguments)
    world: Group = world_group()
    while pipe.recv():
        world.gather_texts("")  # wait for all
        began = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - began)
    if size > 1:
        dist.destroy_process_group()


class World:
    """A number of ranks that step together."""

    def __init__(self, case: str, size: int, folder: Path) -> None:
        context = get_context("spawn")
        self.size = size
        self.pipes, self.ranks = [], []
        for rank in range(size):
            pipe, far_end = context.Pipe()
            arguments = (far_end, case, rank, size, folder / f"store-{size}")
            process = context.Process(target=rank_main, args=arguments)
            process.start()
            self.pipes.append(pipe)
            self.ranks.append(process)

    def tell(self, go_on: bool) -> None:
        """Make all ranks step, or end."""
        for pipe in self.pipes:
            pipe.send(go_on)

    def step(self) -> float:
        """Seconds of the slowest rank."""
        self.tell(True)
        seconds: list[float] = [pipe.recv() for pipe in self.pipes]
        return max(seconds)

    def close(self) -> None:
        """End the ranks."""
        self.tell(False)
        for rank in self.ranks:
            rank.join()


def measure(case: str, sizes: list[int], rounds: int) -> None:
    """Step the worlds in turn and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        worlds = [World(case, size, Path(folder)) for size in sizes]
        for _ in range(2):
            for world in worlds:
                world.step()  # warm
        steps = [[world.step() for world in worlds] for _ in range(rounds)]
        for world in worlds:
            world.close()
    for index, size in enumerate(sizes):
        seconds = [row[index] for row in steps]
        ratios = sorted(size / sizes[0] * row[0] / row[index] for row in steps)
        print(
            f"{case}: {size} ranks, {1e3 * statistics.median(seconds):.0f} ms a step, "
            f"throughput x {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def main() -> None:
    """Print a line for each case and world."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    for case in CASES:
        measure(case, chosen.ranks, chosen.rounds)


if __name__ == "__main__":
    main()
