"""The error of a record that cannot be read: a run stops at it, or passes over it."""

from typing import Protocol

REMEDY = "copy it again or remove it, or pass over such records with data.on_error: skip"


class UnreadableRecord(ValueError):
    """One record of a data set is damaged, missing, or no image.

    Attributes:
        where: As the data set describes it: the file, and the record's number.
        reason: What is wrong, with the byte where that is known.
        index: Its index in the data set.
    """

    def __init__(self, where: str, reason: str, index: int) -> None:
        super().__init__(f"{where}: {reason}; {REMEDY}")
        self.where, self.reason, self.index = where, reason, index


class _Describes(Protocol):
    def describe(self, index: int) -> str: ...


def unreadable(dataset: _Describes, index: int, error: OSError | ValueError) -> UnreadableRecord:
    """Record `index` of a data set with the reason that `error` gives, to be raised from it."""
    reason = error.strerror if isinstance(error, OSError) else None
    return UnreadableRecord(dataset.describe(index), reason or str(error), index)
