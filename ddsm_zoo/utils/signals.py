"""Signal handling: Ctrl-C, or a cluster's notice before it kills, lets the current step finish."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set. The previous handler takes a second SIGINT.

    A second SIGTERM changes nothing, because a scheduler sends one to every process and `accelerate launch` passes on
    its own. The sender of SIGTERM kills in the end. All previous handlers are restored afterwards.
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
    """Ignore these signals in a data-loading process. The current step still needs its images."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
