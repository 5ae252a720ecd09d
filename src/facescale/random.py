"""Randomness as a function: what is drawn depends on a key (seed, step, ...), never on history.

`generator` gives a stream of torch's for many numbers of one key; the counter-based functions give
each key, one of millions, its own numbers, equal on every device and for any split of the work.
"""

import numpy as np
import torch
from numpy.typing import NDArray

Word = int | NDArray[np.int64] | NDArray[np.uint64]


def derive_seed(*key: int) -> int:
    """A 63-bit seed from whole numbers >= 0; different keys give independent streams."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on `device` whose stream belongs to `key` alone."""
    return torch.Generator(device).manual_seed(derive_seed(*key))


def hash64(*key: Word) -> NDArray[np.uint64]:
    """64 random bits for each key; the words of a key broadcast, the result has one axis or more.

    Source: the mixing function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), once a word.
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = state + np.asarray(word).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def uniform(*key: Word) -> NDArray[np.float32]:
    """A number in [0, 1) for each key, as in `hash64`; a multiple of 2**-24."""
    return (hash64(*key) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def normal(count: int, *key: Word) -> NDArray[np.float32]:
    """`count` numbers of N(0, 1) for each key; (..., count).

    Source: Box and Muller, Annals of Mathematical Statistics 29, 1958; two of each 64 bits.
    """
    pairs = np.arange(-(-count // 2))
    bits = hash64(*(np.asarray(word)[..., None] for word in key), pairs)
    unit = np.float32(2.0**-24)
    # Never 0, of which there is no logarithm.
    radius = np.sqrt(
        -2.0 * np.log(((bits >> np.uint64(40)) + np.uint64(1)).astype(np.float32) * unit)
    )
    turn = (bits & np.uint64(0xFFFFFF)).astype(np.float32) * (np.float32(2 * np.pi) * unit)
    return np.concatenate([radius * np.cos(turn), radius * np.sin(turn)], axis=-1)[..., :count]
