"""Lets atheris choose the changes of `fuzz.py` by the lines of facescale.data that they reach.

python tests/fuzz_guided.py tar 300     # a reader and seconds; ends with 0 where nothing was found
"""

import logging
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["facescale.data"]):
    import fuzz


class Decisions(random.Random):
    """Numbers from given bytes; zeros when they are used up."""

    def __new__(cls, data: bytes) -> "Decisions":
        return super().__new__(cls)

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data, self._place = data, 0

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        taken = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(24) / 2**24


def main(reader: str, seconds: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=fuzz._memory()))
    os.environ["XDG_CACHE_HOME"] = str(folder)
    fuzz.warm_up(folder)
    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=3000", "-max_len=4096"]
    atheris.Setup(
        [sys.argv[0], *options],
        lambda data: fuzz.one_of(reader, Decisions(data), folder) and None,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
