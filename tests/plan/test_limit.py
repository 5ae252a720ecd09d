"""Limits of memory: by the kernel on a CPU, by a fraction of the card's memory on CUDA."""

import subprocess
import sys
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


NO_THREAD = """
import sys, threading
import numpy, torch
from facescale.plan.limit import is_out_of_memory, limit_memory

if sys.argv[1] == "limited":
    used = 1024 * int(open("/proc/self/status").read().split("VmData:")[1].split()[0])
    limit_memory(used + (64 << 20), torch.device("cpu"))
threading.stack_size(128 << 20)
try:
    threading.Thread(target=print).start()
    print("started")
except RuntimeError as error:
    print(is_out_of_memory(error))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit needs Linux")
@pytest.mark.parametrize(("how", "expected"), [("limited", "True"), ("free", "started")])
def test_no_room_for_the_stack_of_a_thread_is_out_of_memory(how: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_THREAD, how], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected]


def test_too_many_threads_without_a_limit_are_not_out_of_memory() -> None:
    assert not limit.is_out_of_memory(RuntimeError("can't start new thread"))
