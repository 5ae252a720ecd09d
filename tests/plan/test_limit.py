"""Limits of memory: by the kernel on a CPU, by a fraction of the card's memory on CUDA."""

from types import SimpleNamespace

import pytest
import torch

from facescale.plan import limit

GIB = 1 << 30


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, float]:
    """A card of 80 GiB of which CUDA's context takes half a GiB; gives the fractions set."""
    fractions: dict[torch.device, float] = {}
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device: empty(*size))
    properties = SimpleNamespace(total_memory=80 * GIB)
    for name, answer in (
        ("get_device_properties", lambda device: properties),
        ("mem_get_info", lambda device: (80 * GIB - GIB, 80 * GIB)),
        ("memory_reserved", lambda device: GIB // 2),
        (
            "set_per_process_memory_fraction",
            lambda share, device: fractions.__setitem__(device, share),
        ),
    ):
        monkeypatch.setattr(torch.cuda, name, answer)
    return fractions


def test_a_limit_on_a_card_counts_the_context(card: dict[torch.device, float]) -> None:
    device = torch.device("cuda")
    limit.limit_memory(16 * GIB, device)
    assert card[device] == pytest.approx(15.5 / 80)
    limit.limit_memory(200 * GIB, device)
    assert card[device] == 1.0
    with pytest.raises(ValueError, match="no memory beside CUDA's context"):
        limit.limit_memory(GIB // 4, device)
