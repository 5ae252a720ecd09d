"""Work in threads, ahead of who uses the results, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Part], Result], parts: Iterable[Part], num_threads: int, per_thread: int = 2
) -> Iterator[Result]:
    """What `work` returns for each part, in their order.

    Args:
        work: Called in the threads.
        parts: Taken one at a time, when there is room.
        num_threads: At least 1.
        per_thread: Results of each thread that may wait, which bounds the memory.

    Raises:
        Exception: That of `work`, in the place of its result; parts that wait are given up.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for part in parts:
            waiting.append(pool.submit(work, part))
            if len(waiting) > per_thread * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
