"""Counter-based random numbers: what is drawn is a function of its key, never of history."""

import numpy as np
from numpy.typing import NDArray

Word = int | NDArray[np.int64] | NDArray[np.uint64]


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
