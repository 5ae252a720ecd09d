"""What one of 8, 64 and 512 ranks sends and holds in a training step, counted in one process.

The other ranks are torch's fake process group, in which each rank has the data of this one.
Prints the table of docs/parallelism.md:  python cluster/growth.py
"""

import argparse

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from facescale.config import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from facescale.distributed import Group
from facescale.training import TrainState, build, train_step

PLACEMENTS = {  # shards as a function of the ranks, sample rate
    "data parallel": (lambda ranks: 1, 1.0),
    "model parallel": (lambda ranks: ranks, 1.0),
    "Partial FC": (lambda ranks: ranks, 0.1),
    "hybrid, 8 shards, Partial FC": (lambda ranks: 8, 0.1),
}


def main() -> None:
    """Print a row for each placement and number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--backbone", default="r100")
    parser.add_argument("--classes", type=int, default=360_232)
    parser.add_argument("--batch", type=int, default=64, help="samples of a rank")
    chosen = parser.parse_args()
    print("| placement | ranks | collectives | sent: head | sent: backbone | held: centres |")
    print("|---|---|---|---|---|---|")
    for name, (shards, rate) in PLACEMENTS.items():
        for ranks in chosen.ranks:
            dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
            state = step_of(chosen, shards(ranks), rate)
            print(row(name, ranks, state), flush=True)
            dist.destroy_process_group()


def step_of(chosen: argparse.Namespace, shards: int, rate: float) -> TrainState:
    """State after the second step of a rank; in the first, ranks exchange their batch sizes."""
    config = Config(
        data=DataConfig(path="synthetic", num_classes=chosen.classes, num_images=4096),
        backbone=BackboneConfig(name=chosen.backbone),
        head=HeadConfig(shards=shards, sample_rate=rate),
        train=TrainConfig(batch_size=2),  # the bytes of the backbone do not depend on it
        device="cpu",
    )
    state = build(config, torch.device("cpu"))
    for _ in range(2):
        backbone, head = state.groups()[:1], state.groups()[1:]
        forget(backbone)
        with state.loader() as loader:
            train_step(state, next(loader))
        forget(head)
        embeddings = torch.randn(chosen.batch, state.head.embedding_dim, requires_grad=True)
        labels = torch.randint(chosen.classes, (chosen.batch,))
        state.head(embeddings, labels, lr=0.1).backward()
    return state


def forget(groups: list[Group]) -> None:
    """Reset the counters."""
    for group in groups:
        group.traffic.calls.clear()
        group.traffic.sent.clear()


def row(name: str, ranks: int, state: TrainState) -> str:
    """A row of the table, in MiB."""
    world, *head = (group.traffic for group in state.groups())
    calls = world.calls.total() + sum(traffic.calls.total() for traffic in head)
    sent = (sum(traffic.sent.total() for traffic in head), world.sent.total())
    sizes = [f"{size / 2**20:,.2f} MiB" for size in (*sent, state.head.centres.table.nbytes)]
    return f"| {name} | {ranks} | {calls} | {' | '.join(sizes)} |"


if __name__ == "__main__":
    main()
