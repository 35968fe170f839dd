"""Ordered prefetch with a thread pool: work on one item while others are read and written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """Map ``function`` over ``items`` in order, in threads that run at most ``ahead`` items ahead of the consumer.

    ``items`` is read by the caller's thread. You can nest calls: the inner one reads ahead and the outer one writes
    behind, as in ``prefetch(write, (work(image) for image in prefetch(read, paths, 2, 4)), 2, 4)``. With ``ahead`` 0 it
    is `map`.
    """
    if not ahead:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the caller may stop early
            for future in waiting:
                future.cancel()


def passing_errors(function: Callable[[Any, Any], Any]) -> Callable[[tuple[Any, Any]], tuple[Any, Any]]:
    """Wrap ``function(item, value)`` as a `prefetch` stage from (item, value) to (item, new value).

    A ValueError or OSError replaces the value, and later stages pass it on: one bad item does not stop the others.
    """

    def stage(pair: tuple[Any, Any]) -> tuple[Any, Any]:
        item, value = pair
        if isinstance(value, Exception):
            return pair
        try:
            return item, function(item, value)
        except (ValueError, OSError) as error:
            return item, error
        except MemoryError:  # it has no text
            return item, ValueError(f"there is not enough memory for {item}")

    return stage
