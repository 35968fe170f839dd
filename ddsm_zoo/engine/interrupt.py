"""Ctrl-C that lets the step in hand finish."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first SIGINT sets. The handler that was there before takes the next one, and returns after."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield interrupted
        return
    previous = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def handle(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def ignore_interrupt(_worker: int) -> None:
    """For loading processes, which Ctrl-C reaches too: the step in hand still needs their images."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
