"""Unreadable records that a run has passed over, by `data.on_error: skip`."""

from collections.abc import Iterable

from facescale.distributed import Group


class PassedOver:
    """Their numbers in the data set, over all ranks and since the run began.

    Attributes:
        own: Those that this rank has met; its loader adds to them.
    """

    def __init__(self, known: Iterable[int] = ()) -> None:
        self.own: set[int] = set()
        self._known = set(known)

    def gather(self, world: Group) -> list[int]:
        """All of them, sorted. A collective."""
        fresh = sorted(self.own.copy() - self._known)
        for said in world.gather_texts(" ".join(map(str, fresh))):
            self._known.update(map(int, said.split()))
        return sorted(self._known)
