"""Split work over threads that each run torch's operators alone.

Torch starts and joins its threads once for each operator. If one core is busy with something else, every operator waits
for it. Here a thread takes the next part of the work when it is done with its last, so a slow core only does less.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# Threads of torch for which the parts of the work can be large enough: Python runs in one of them at a time
MOST = 16
# Results that may wait for an earlier one, for each thread
_AHEAD = 4


def run(compute: Callable[[int], T], count: int, collect: Callable[[T], object] | None = None) -> None:
    """Call ``compute(part)`` for each part from 0 to ``count`` - 1, on as many threads as torch has for the caller.

    Args:
        compute: Work on one part. It runs without gradients, and in any order.
        count: Number of parts.
        collect: Called with each result in the order of the parts, never twice at once. Sums then do not depend on the
            threads. A thread waits if too many results wait for an earlier one.

    Raises:
        Exception: The first error of ``compute`` or ``collect``. Parts not yet started are left out.
    """
    parts = _Parts(compute, count, collect)
    threads = min(torch.get_num_threads(), count, MOST)
    # a mode that watches operators, such as one that counts memory, sees those of its own thread
    watched = torch._C._len_torch_dispatch_stack() > 0
    if threads < 2 or watched or not _per_thread():
        parts.work()
        return
    parts.ahead = _AHEAD * threads
    futures: list[Future[None]] = [_pool().submit(parts.work) for _ in range(threads)]
    try:
        for future in futures:
            future.result()
    except BaseException:
        parts.stop()  # such as at Ctrl-C, which only the caller gets
        raise


class _Parts(Generic[T]):
    """Parts of the work that are still to be done, and results that wait for their turn."""

    def __init__(self, compute: Callable[[int], T], count: int, collect: Callable[[T], object] | None) -> None:
        self.compute, self.collect = compute, collect
        self.count = count
        self.ahead = 1
        self.next = 0  # part to start
        self.turn = 0  # part to collect
        self.results: dict[int, T] = {}
        self.collecting = False
        self.changed = threading.Condition()

    def work(self) -> None:
        """Do parts until none is left."""
        # not the caller's mode, which belongs to its thread; in inference mode every tensor may be written to
        with torch.inference_mode():
            try:
                while (part := self._take()) is not None:
                    result = self.compute(part)
                    if self.collect is not None:
                        self._collect(part, result, self.collect)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Start no more parts."""
        with self.changed:
            self.next = self.count
            self.changed.notify_all()

    def _take(self) -> int | None:
        with self.changed:
            if self.collect is not None:
                self.changed.wait_for(lambda: self.next >= self.count or self.next < self.turn + self.ahead)
            if self.next >= self.count:
                return None
            self.next += 1
            return self.next - 1

    def _collect(self, part: int, result: T, collect: Callable[[T], object]) -> None:
        """Collect all results whose turn it is, unless another thread is at it, which then takes this one too."""
        with self.changed:
            self.results[part] = result
            if self.collecting:
                return
            self.collecting = True
        while True:
            with self.changed:
                if self.turn not in self.results:
                    self.collecting = False
                    return
                result = self.results.pop(self.turn)
            collect(result)
            with self.changed:
                self.turn += 1
                self.changed.notify_all()


@functools.cache
def _per_thread() -> bool:
    """Return True if torch lets each thread have its own number of threads."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # A thread starts when no other is idle. Callers in several threads do not wait for each other.
    return ThreadPoolExecutor(1024, thread_name_prefix="ddsm-zoo", initializer=_run_operators_alone)


# held while torch's settings are changed, and while the process forks, which then copies them as they should be
_settings = threading.Lock()


def _start_without_threads() -> None:
    """Forget the threads, none of which a forked process has."""
    _pool.cache_clear()
    _settings.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_settings.acquire, after_in_parent=_settings.release, after_in_child=_start_without_threads
    )


def _run_operators_alone() -> None:
    """Have torch use one thread for the operators of the calling thread, and no other.

    `torch.set_num_threads` sets this number for the calling thread and for all threads to come. A thread that ends at
    once sets the second back.
    """
    with _settings:
        threads = torch.get_num_threads()  # in a new thread the default
        torch.set_num_threads(1)
        restore = threading.Thread(target=torch.set_num_threads, args=(threads,))
        restore.start()
        restore.join()
