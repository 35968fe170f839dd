"""Ctrl-C, and the notice that a cluster gives before it kills, let the step in hand finish."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set. A second SIGINT is taken by the handler that was there before.

    A second SIGTERM changes nothing: a scheduler sends one to every process and `accelerate launch` passes on its own.
    Whoever sends it kills in the end. All handlers that were there before return afterwards.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield interrupted
        return
    previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}

    def handle(number: int, _frame: FrameType | None) -> None:
        interrupted.set()
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_interrupt(_worker: int) -> None:
    """For loading processes, which these signals may reach too: the step in hand still needs their images."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
