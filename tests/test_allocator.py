"""Advice to the system changes how fast memory is, never what it holds."""

import sys

import pytest
import torch

from facescale.allocator import keep_freed_memory, use_huge_pages

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux and glibc")


@linux
def test_glibc_keeps_freed_memory() -> None:
    assert keep_freed_memory()


@linux
@pytest.mark.parametrize("megabytes", [0, 1, 9])
def test_huge_pages_hold_what_is_written(megabytes: int) -> None:
    tensor = torch.zeros(megabytes << 18)
    assert use_huge_pages(tensor) == (megabytes > 0)
    tensor += 1
    assert tensor.sum().item() == megabytes << 18


def test_a_tensor_elsewhere_is_left_alone() -> None:
    assert not use_huge_pages(torch.empty(1 << 20, device="meta"))
