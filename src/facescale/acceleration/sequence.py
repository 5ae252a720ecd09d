"""Layers one after the other, with as many of them at once as the native kernels can do."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from facescale.acceleration.chain import chain_of, is_alone, run, takes


class Layers(nn.Module):
    """Layers in sequence, kept under `layers`: a level that arcface_torch's weight names have."""

    is_residual = False
    """Whether the input is added to the output."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        return in_sequence(self.layers, x, x if self.is_residual else None)


def in_sequence(layers: Iterable[nn.Module], x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """What `layers` make of `x` one after the other, plus `shortcut` (b, c, h, w) if there is one.

    A residual one among them is done by itself, all others as if they lay in one row.
    """
    remaining = list(_flat(layers))
    while remaining:
        links = chain_of(remaining, x)
        if links:
            del remaining[: sum(map(len, links))]
            is_last = not remaining and takes(links, x, shortcut)
            x = run(links, x, shortcut if is_last else None)
            shortcut = None if is_last else shortcut
        else:
            x = remaining.pop(0)(x)
    return x if shortcut is None else x + shortcut


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        if not is_alone(layer):
            yield layer
        elif type(layer) is nn.Sequential:
            yield from _flat(layer)
        elif isinstance(layer, Layers) and not layer.is_residual:
            yield from _flat(layer.layers)
        else:
            yield layer
