"""What training keeps of the backbone beside its optimizer: sums of gradients, an average."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from facescale.distributed import Group


class Kept:
    """Gradients of the batches since the last update, and the moving average of the weights.

    Args:
        backbone: Whose parameters and running statistics these are.
        decay: Of the average, in [0, 1); None: there is none.
    """

    def __init__(self, backbone: nn.Module, decay: float | None) -> None:
        self.backbone, self.decay = backbone, decay
        self.gradients: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        """Weights and running statistics; empty before the first update."""

    def add_gradients_(self) -> None:
        """Take the gradients, which are alike on all ranks, from the parameters."""
        for name, parameter in self._learning().items():
            if parameter.grad is not None:
                known = self.gradients.get(name)
                new = parameter.grad.clone() if known is None else known.add_(parameter.grad)
                self.gradients[name] = new
                parameter.grad = None

    def give_gradients_back_(self) -> None:
        """Give each parameter the sum of its gradients, the last ones included."""
        if not self.gradients:
            return
        self.add_gradients_()
        for name, parameter in self._learning().items():
            parameter.grad = self.gradients.pop(name, None)

    @torch.no_grad()
    def update_average_(self, learned: Tensor | None = None) -> None:
        """Let the average follow the weights as they are now; it begins with them.

        Args:
            learned: () of bool, on the device: whether the last step changed the weights. Where it
                is false the average stays. None: it did.
        """
        if self.decay is None:
            return
        now = self._averaged()
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in now.items()}
            return
        own, weight = [self.average[name] for name in now], 1.0 - self.decay
        if learned is None:
            torch._foreach_lerp_(own, list(now.values()), weight)
            return
        ways = torch._foreach_sub(list(now.values()), own)
        torch._foreach_mul_(ways, learned.to(own[0].dtype) * weight)
        torch._foreach_add_(own, ways)

    @contextmanager
    def averaged(self, world: Group) -> Iterator[None]:
        """The backbone has the average of its weights inside the block. A collective."""
        now = self._averaged() if self.average else {}
        before = {name: value.detach().clone() for name, value in now.items()}
        self._write_(self._shared(world))
        try:
            yield
        finally:
            self._write_(before)

    def tensors(self, world: Group) -> dict[str, Tensor]:
        """What a checkpoint has to hold, alike on all ranks. A collective."""
        average = self._shared(world)
        return {f"average/{name}": value for name, value in average.items()} | {
            f"gradients/{name}": value for name, value in self.gradients.items()
        }

    def load_(self, stored: Mapping[str, Tensor], path: Path) -> None:
        """Take over what `tensors` gave; ValueError where `path` has it of another backbone."""
        own = dict(self.backbone.named_parameters()) | dict(self.backbone.named_buffers())
        found: dict[str, dict[str, Tensor]] = {"average": {}, "gradients": {}}
        for name, value in stored.items():
            part, _, parameter = name.partition("/")
            if parameter not in own or own[parameter].shape != value.shape:
                raise ValueError(f"{path}: {name:.100} does not belong to this backbone")
            found[part][parameter] = torch.empty_like(own[parameter]).copy_(value).detach()
        self.gradients = found["gradients"]
        self.average = found["average"] if self.decay is not None else {}
        other = self.average.keys() ^ self._averaged().keys()
        if self.average and other:
            raise ValueError(
                f"{path}: its average of the weights is of other layers than those that learn in "
                f"this run, {min(other)} for example; keep optim.groups, or leave out optim.ema"
            )

    def _learning(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.backbone.named_parameters() if p.requires_grad}

    def _averaged(self) -> dict[str, Tensor]:
        """What the average is of: parameters that learn, and running statistics."""
        buffers = self.backbone.named_buffers()
        statistics = {name: value for name, value in buffers if value.is_floating_point()}
        return {**self._learning(), **statistics}

    def _shared(self, world: Group) -> dict[str, Tensor]:
        """The average, with the mean of all ranks' running statistics."""
        learning = self._learning()
        return {
            name: value if name in learning else world.all_reduce_(value.clone()) / world.size
            for name, value in self.average.items()
        }

    @torch.no_grad()
    def _write_(self, values: Mapping[str, Tensor]) -> None:
        now = self._averaged() if values else {}
        for name, value in values.items():
            now[name].copy_(value)
