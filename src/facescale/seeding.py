"""Randomness as a function: what is drawn depends on a key (seed, step, ...), never on history."""

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """A 63-bit seed from whole numbers >= 0; different keys give independent streams."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on `device` whose stream belongs to `key` alone."""
    return torch.Generator(device).manual_seed(derive_seed(*key))
