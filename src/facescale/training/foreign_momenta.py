"""What an optimizer of torch has saved for parameters that it knows by number alone."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from facescale.models.names import printable
from facescale.models.torchfile import is_plain
from facescale.training.optim import fill_momenta_

Slots = dict[str, Tensor]
"""What is kept for a parameter, by torch's name: `momentum_buffer` for example."""

_POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2}
"""Of the gradient, in what is kept."""
_MAX_STEP = 1 << 31


def read_slots(
    saved: object,
    group: int,
    shapes: Sequence[torch.Size],
    wanted: Sequence[str],
    batches: int = 1,
) -> list[Slots]:
    """What is kept for each parameter of a group, in order.

    Args:
        saved: The optimizer's `state_dict()`, read from a file of unknown author.
        group: Number of the parameter group.
        shapes: Of its parameters.
        wanted: What has to be kept for a parameter, unless nothing is.
        batches: Gradients were sums over so many batches; the result is of their means.

    Raises:
        ValueError: It is not such a state, of another kind of optimizer, or of other parameters.
            The message begins with what "it" is.
    """
    groups = saved.get("param_groups") if isinstance(saved, Mapping) else None
    kept = saved.get("state") if isinstance(saved, Mapping) else None
    if not isinstance(groups, list) or not isinstance(kept, Mapping) or len(groups) <= group:
        raise ValueError("the file has no state of an optimizer")
    numbers = groups[group].get("params") if isinstance(groups[group], Mapping) else None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ValueError("the file has no state of an optimizer")
    if len(numbers) != len(shapes):
        raise ValueError(f"its optimizer has {len(numbers)} parameters, the file {len(shapes)}")
    return [
        {key: _mean(key, value, batches) for key, value in _slots(kept.get(number), shape, wanted)}
        for number, shape in zip(numbers, shapes, strict=True)
    ]


def _slots(kept: object, shape: torch.Size, wanted: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The `wanted` entries of one parameter, checked."""
    has = (
        {key: value for key, value in kept.items() if value is not None}
        if isinstance(kept, Mapping)
        else {}
    )
    if not has or not wanted:
        return
    if missing := [key for key in wanted if key not in has]:
        names = ", ".join(sorted(printable(str(key)) for key in has)[:4])
        raise ValueError(f"its optimizer keeps {names}, not {missing[0]}")
    for key in wanted:
        value = has[key]
        if key == "step":
            yield key, _step(value)
            continue
        if not is_plain(value) or not value.is_floating_point():
            raise ValueError(f"its {key} is not a plain tensor")
        if value.shape != shape:
            raise ValueError(f"its {key} has shape {list(value.shape)}, the weight {list(shape)}")
        if not value.isfinite().all() or (key == "exp_avg_sq" and bool((value < 0).any())):
            raise ValueError(f"its {key} is not finite, or below 0")
        yield key, value


def _step(value: object) -> Tensor:
    """Number of updates, () float32; older versions of torch kept an int."""
    if is_plain(value) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or not 0 <= value < _MAX_STEP:
        raise ValueError("its step is not a number of steps")
    return torch.tensor(float(value))


def _mean(key: str, value: Tensor, batches: int) -> Tensor:
    return value / batches ** _POWERS[key] if key in _POWERS else value


def give_(
    optimizer: torch.optim.Optimizer, backbone: nn.Module, slots: Mapping[str, Slots]
) -> list[str]:
    """Let the optimizer keep `slots`, by parameter name, in place of what it has.

    Returns the names of parameters that learn and are not among them.
    """
    names = {parameter: name for name, parameter in backbone.named_parameters()}
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {
            # In the memory layout of the parameter
            key: value if key == "step" else torch.empty_like(parameter).copy_(value)
            for key, value in slots[names[parameter]].items()
        }
        for number, parameter in enumerate(learning)
        if slots.get(names[parameter])
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    fill_momenta_(optimizer)
    return [names[p] for number, p in enumerate(learning) if number not in state]
