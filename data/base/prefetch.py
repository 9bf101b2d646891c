"""Work done ahead of its use: the next item is made by a thread while one is used."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def prefetched(make: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`make` of each item, in their order; the next one is under way while one is used.

    At most two results are held at a time. What `make` raises is raised where its result is asked
    for.

    Example:
      >>> list(prefetched(str, range(3)))
      ['0', '1', '2']

    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming: Future[T] | None = None
        for item in items:
            following = thread.submit(make, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
