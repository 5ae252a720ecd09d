"""Random numbers as a function: a number depends on a key (seed, step, ...), never on history.

All random numbers of this package come from one hash of 32 bits under a key of 64, `Key.bits`. It
uses operations that Python's integers and int64 tensors share, so it gives the same numbers on
every device and for any split of the work; `kernels/cpu/random.h` is the same in C++. Initial
weights of a network and dropout are drawn by torch's own generators, which `derive_seed` seeds.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Whole = Any
"""An int, or an int64 tensor; tensors broadcast."""

MASK = 0xFFFFFFFF
FIRST, SECOND = 0x21F0AAAD, 0xD35A2D97
WEYL = 0x9E3779B9  # 2**32 / golden ratio: spreads counters that follow each other
OTHER = 0xB7E15163  # tells the two words of a key apart
STRIDE = 0x61C88647  # tells the rounds of a permutation apart
UNIT = 2.0**-24


class Key(NamedTuple):
    """64 bits that select one of many independent sequences of random numbers."""

    low: Whole
    high: Whole

    def bits(self, counter: Whole) -> Whole:
        """32 random bits for each counter in [0, 2**32); one to one for a given key.

        A Weyl sequence, then two rounds of multiply and xorshift with half of the key in front of
        each. The constants of the rounds are the best known for this form: bias 0.107 in Wellons'
        measure, github.com/skeeto/hash-prospector, issue 19 (TheIronBorn). Not for cryptography.
        """
        x = counter * WEYL + self.low & MASK
        x = (x ^ (x >> 16)) * FIRST & MASK
        x = x ^ self.high
        x = (x ^ (x >> 15)) * SECOND & MASK
        return x ^ (x >> 15)

    def child(self, word: Whole) -> "Key":
        """The key of `word` in [0, 2**64) under this key; all different for words below 2**32."""
        key = self._half(word >> 32 & MASK)
        return key._half(word & MASK)

    def _half(self, word: Whole) -> "Key":
        return Key(self.bits(word), Key(self.high, self.low ^ OTHER).bits(word))

    def uniform(self, counter: Tensor) -> Tensor:
        """A float32 in [0, 1) for each counter, a multiple of 2**-24."""
        numbers: Tensor = (self.bits(counter) >> 8).float() * UNIT
        return numbers

    def normal(self, count: int) -> Tensor:
        """The first `count` numbers of N(0, 1), float32; (count,).

        For a key of tensors (..., 1) it is (..., count). Source: Box and Muller, Annals of
        Mathematical Statistics 29, 1958.
        """
        device = self.low.device if isinstance(self.low, Tensor) else None
        pairs = torch.arange(0, count, 2, device=device)
        # Never 0, of which there is no logarithm.
        radius = (-2.0 * (((self.bits(pairs) >> 8) + 1).float() * UNIT).log()).sqrt()
        turn = self.uniform(pairs + 1) * (2 * math.pi)
        both = torch.stack([radius * turn.cos(), radius * turn.sin()], dim=-1)
        return both.flatten(-2)[..., :count]


def key(*words: int) -> Key:
    """The key of some whole numbers, such as seed and step."""
    result = Key(0x243F6A88, 0x85A308D3)  # digits of pi
    for word in words:
        result = result.child(word)
    return result


def derive_seed(*words: int) -> int:
    """A 63-bit seed from whole numbers, for a key of its own or for a generator of torch."""
    low, high = key(*words)
    return int(high << 32 | low) >> 1


def generator(device: torch.device | str, *words: int) -> torch.Generator:
    """A generator of torch's on `device`, seeded with the key of some whole numbers."""
    return torch.Generator(device).manual_seed(derive_seed(*words))


@dataclass(frozen=True)
class Permutation:
    """A random permutation of range(size) that is never stored: each place is computed by itself.

    A Feistel network that adds on a grid of rows and columns, a little larger than the range;
    what falls outside is permuted again (cycle walking). Sources: Luby and Rackoff, SIAM J. Comput.
    17, 1988; Black and Rogaway, CT-RSA 2002.

    Attributes:
        size: At least 1; a tensor that broadcasts with the places has a permutation for each.
        key: Of whole numbers, or of tensors that broadcast with the places.
    """

    size: Whole
    key: Key

    ROUNDS = 4  # of both sides; two are enough for large ranges
    WALKS = 12  # at most: to stay outside longer has a probability below 1e-15

    @property
    def sides(self) -> tuple[Whole, Whole]:
        """Rows and columns of the grid."""
        if isinstance(self.size, Tensor):
            rows: Whole = (self.size - 1).double().sqrt().long() + 1
        else:
            rows = math.isqrt(self.size - 1) + 1
        return rows, -(-self.size // rows)

    @property
    def walks(self) -> int:
        """How often to permute so that every place has come back inside."""
        if isinstance(self.size, Tensor):
            return self.WALKS
        rows, columns = self.sides
        return int(min(rows * columns - self.size + 1, self.WALKS))

    def __call__(self, place: Tensor) -> Tensor:
        """Where the permutation sends each place; int64."""
        return self._walk(place, self._forward)

    def inverse(self, index: Tensor) -> Tensor:
        """The place that the permutation sends to each index; int64."""
        return self._walk(index, self._backward)

    def _walk(self, place: Tensor, permute: Any) -> Tensor:
        place = permute(place)
        for _ in range(self.walks - 1):
            outside = place >= self.size
            if place.device.type == "cpu" and not outside.any():
                break  # on other devices to ask would stop the queue of work
            place = torch.where(outside, permute(place), place)
        return place

    def _forward(self, place: Tensor) -> Tensor:
        rows, columns = self.sides
        row = place // columns
        column = place - row * columns
        for step in range(0, 2 * self.ROUNDS, 2):
            row = _wrap(row + self._shift(step, column, rows), rows)
            column = _wrap(column + self._shift(step + 1, row, columns), columns)
        index: Tensor = row * columns + column
        return index

    def _backward(self, index: Tensor) -> Tensor:
        rows, columns = self.sides
        row = index // columns
        column = index - row * columns
        for step in range(2 * self.ROUNDS - 2, -2, -2):
            column = _wrap(column + columns - self._shift(step + 1, row, columns), columns)
            row = _wrap(row + rows - self._shift(step, column, rows), rows)
        place: Tensor = row * columns + column
        return place

    def _shift(self, step: int, other: Tensor, side: int) -> Tensor:
        """How far a round moves along a side of the grid; in [0, side)."""
        shift: Tensor = self.key.bits(other + step * STRIDE & MASK) * side >> 32
        return shift


def _wrap(value: Tensor, side: int) -> Tensor:
    """From [0, 2 * side) back to [0, side)."""
    return value - side * (value >= side)
