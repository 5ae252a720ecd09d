"""Bytes in words, both ways."""

import re

_FACTORS = {
    "": 1,
    **{f"{letter}ib": 1 << (10 * power) for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    "b": 1,
}


def parse_bytes(text: str) -> int:
    """The bytes of `16GiB`, `512 MiB`, `16GB` (of 1000^3) or a plain number.

    Raises:
        ValueError: Anything else.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)", text.strip())
    if match is None or match[2].lower() not in _FACTORS:
        raise ValueError(f"{text!r} is no amount of memory; write it as 16GiB or 512MiB")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def show_bytes(count: int) -> str:
    """`1.25 GiB`, or MiB below one tenth of that."""
    gib = count / 2**30
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{count / 2**20:.1f} MiB"
