"""Split work over threads, with torch's operators single-threaded in each.

Torch splits every operator over its threads and waits for the slowest. If another program keeps one core busy, every
operator waits for that core. Here each thread takes the next part when it has finished one, so a slow core does less.
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

# Maximum number of threads. Only one of them runs Python at a time, so more would need larger parts.
MOST = 16
# Results per thread that may wait for an earlier part
_AHEAD = 4


def run(compute: Callable[[int], T], count: int, collect: Callable[[T], object] | None = None) -> None:
    """Call ``compute(part)`` for each part from 0 to ``count`` - 1, on as many threads as torch has for the caller.

    Args:
        compute: Work on one part. It runs without gradients, in any order.
        count: Number of parts.
        collect: Called with each result in the order of the parts, one at a time, so that sums do not depend on the
            threads. A thread pauses if too many results wait for an earlier part.

    Raises:
        Exception: The first error of ``compute`` or ``collect``. Parts that have not started are skipped.
    """
    parts = _Parts(compute, count, collect)
    threads = min(torch.get_num_threads(), count, MOST)
    # a dispatch mode, such as one that counts memory, sees only the operators of its own thread
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
        parts.stop()  # for example at Ctrl-C, which only the caller's thread receives
        raise


class _Parts(Generic[T]):
    """Remaining parts of the work, and results that wait for earlier ones."""

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
        """Work on parts until none is left."""
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
        """Collect all results whose turn it is, unless another thread is collecting: it takes this one too."""
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


# held while torch's default number of threads is changed, and during a fork, so that no child copies a changed default
_settings = threading.Lock()


def _start_without_threads() -> None:
    """Forget the pool in a forked process, which has none of its threads."""
    _pool.cache_clear()
    _settings.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_settings.acquire, after_in_parent=_settings.release, after_in_child=_start_without_threads
    )


def _run_operators_alone() -> None:
    """Make torch run the operators of the calling thread in that thread alone.

    `torch.set_num_threads` sets the number for the calling thread and the default for threads that start later. A
    second, short-lived thread restores the default.
    """
    with _settings:
        threads = torch.get_num_threads()  # the default, in a new thread
        torch.set_num_threads(1)
        restore = threading.Thread(target=torch.set_num_threads, args=(threads,))
        restore.start()
        restore.join()
