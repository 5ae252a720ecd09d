"""The loop: a batch, a step, now and then a line, a verification, a checkpoint.

Functions over one `TrainState`. Whoever wants another loop writes it from the same parts.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facescale.config import Config
from facescale.data.loader import Batch, Loader
from facescale.distributed import processes
from facescale.evaluation.embedding import verify_pairs
from facescale.evaluation.plots import plot_roc, plot_training
from facescale.evaluation.verification import Verification
from facescale.seeding import derive_seed
from facescale.training.console import Console
from facescale.training.metrics import Window, peak_memory, read_metrics
from facescale.training.norms import average_statistics_
from facescale.training.resume import resume_, save
from facescale.training.state import AUGMENT, DROPOUT, TrainState, build
from facescale.training.weights import save_backbone


@dataclass
class Summary:
    """What a run came to."""

    output: Path
    steps: int
    images: int
    seconds: float
    loss: float
    verifications: dict[str, Verification] = field(default_factory=dict)


def train(config: Config, output: Path, *, resume: bool = False) -> Summary:
    """Train as `config` says and leave everything in the folder `output`.

    Under torchrun every rank calls this. With `resume` the run goes on from its last checkpoint,
    or begins where there is none.

    Raises:
        FileNotFoundError, ValueError: What the config names is missing or does not fit.
        FloatingPointError: The loss is no longer finite.
    """
    with processes(config.device) as device:
        state = build(config, device)
        if resume:
            resume_(state, output)
        if state.world.rank == 0:
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.yaml").write_text(config.to_yaml())
        state.world.barrier()
        console = Console(output, rank=state.world.rank, step=state.step, num_steps=state.num_steps)
        with console:
            return run(state, output, console)


def run(state: TrainState, output: Path, console: Console) -> Summary:
    """All steps that are left, and what is due between them."""
    config, start = state.config, time.perf_counter()
    verifications: dict[str, Verification] = {}
    loss = torch.zeros((), device=state.device)
    window, last_loss, first_step = Window(), float("nan"), state.step
    with state.loader() as loader:
        while state.step < state.num_steps:
            loss += train_step(state, next(loader))
            window.add(state.global_batch)
            console.advance()
            if due(state, config.log_every):
                last_loss = report(state, console, loader, loss, window)
                loss.zero_()
            began = time.perf_counter()
            if due(state, config.evaluation.every):
                verifications = evaluate(state, console)
            if due(state, config.checkpoint.every):
                save(state, output)
            window.skip(time.perf_counter() - began)
    summary = Summary(
        output,
        steps=state.step - first_step,
        images=(state.step - first_step) * state.global_batch,
        seconds=time.perf_counter() - start,
        loss=last_loss,
        verifications=verifications,
    )
    if state.world.rank == 0:
        leave_results(state, output, summary)
    return summary


def due(state: TrainState, every: int | None) -> bool:
    """Whether something that happens `every` so many steps happens now; all happens at the end."""
    return state.step == state.num_steps or (every is not None and state.step % every == 0)


def train_step(state: TrainState, batch: Batch) -> Tensor:
    """One update of backbone and class centres. Returns this rank's share of the loss, ().

    Every random number comes from (seed, step), so a run that was stopped repeats the same ones.
    """
    config, step = state.config, state.step
    lr = config.optim.lr * state.schedule(step)
    torch.manual_seed(derive_seed(config.seed, DROPOUT, step, state.world.rank))
    images = state.augment(
        batch.images.to(state.device, non_blocking=True),
        seed=derive_seed(config.seed, AUGMENT),
        position=batch.position + batch.offset,
    )
    labels = batch.labels.to(state.device, non_blocking=True)
    state.head.margin = state.margin.scaled(min(1.0, (step + 1) / (config.head.margin.warmup or 1)))
    state.model.train()
    with state.autocast():
        embeddings = state.model(images)
    # The head works in float32 and needs no loss scale; what goes into the trunk does.
    scale = state.scaler.scale(torch.ones((), device=state.device))
    embeddings.register_hook(lambda gradient: gradient * scale)
    loss = state.head(embeddings, labels, lr * config.head.lr_factor)
    if not state.scaler.is_enabled() and not loss.isfinite():
        raise FloatingPointError(
            f"step {step}: the loss is not finite; lower optim.lr (now {lr:g}), or warm it up with "
            "optim.schedule.warmup. No weight was changed by this step."
        )
    loss.backward()
    apply_gradients(state, lr)
    state.step += 1
    state.position += state.global_batch
    share: Tensor = loss.detach()
    return share


def apply_gradients(state: TrainState, lr: float) -> None:
    """The backbone's step. All ranks hold the same sums, so all find the same overflow and skip."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.scaler.unscale_(state.optimizer)
    if state.config.optim.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.backbone.parameters(), state.config.optim.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def report(
    state: TrainState, console: Console, loader: Loader, loss: Tensor, window: Window
) -> float:
    """Say and write down what the last steps were like; returns their mean loss over all ranks."""
    steps = window.samples // state.global_batch
    mean = state.world.all_reduce_(loss.clone()).item() / steps
    row: dict[str, Any] = {
        "step": state.step,
        "epoch": state.position / len(state.dataset),
        "loss": mean,
        "lr": state.optimizer.param_groups[0]["lr"],
        "images_per_s": window.close(),
        "wait_s": loader.wait_s,
        "peak_gib": peak_memory(state.device) / 2**30,
    }
    if state.scaler.is_enabled():
        row["grad_scale"] = state.scaler.get_scale()
    console.log(row)
    return mean


def evaluate(state: TrainState, console: Console) -> dict[str, Verification]:
    """Verify on every set, the images shared by all ranks; by name of the set."""
    average_statistics_(state.backbone, state.world)
    answers = {}
    for pairs in state.pairs:
        with state.autocast():
            answers[pairs.name] = verify_pairs(
                state.backbone,
                pairs,
                state.config.evaluation.batch_size,
                state.device,
                state.world.rank,
                state.world.size,
                state.world.gather_rows,
            )
        console.verified(pairs.name, answers[pairs.name])
    return answers


def leave_results(state: TrainState, output: Path, summary: Summary) -> None:
    """The trained backbone and the pictures of the run."""
    save_backbone(output / "model.safetensors", state.backbone)
    rows = read_metrics(output / "metrics.jsonl")
    if any("loss" in row for row in rows):
        plot_training(output / "training.png", rows)
    if summary.verifications:
        plot_roc(output / "roc.png", summary.verifications)
