"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt, by their names in malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_PAD = 256 * 2**20  # bytes


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for what it allocates next.

    By default glibc returns every large block to the system, and the system clears each page of a new one. A network on
    the CPU makes hundreds of large tensors in a step, and this can take half of its time (docs/performance.md). The
    process then keeps its peak memory until it ends.

    It does not concern the memory of a GPU. Nothing changes without glibc, or if the environment has settings of its
    own (``MALLOC_*`` or ``GLIBC_TUNABLES``).
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not own else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # large blocks come from the heap, too
        mallopt(_TRIM_THRESHOLD, -1)  # the heap never shrinks
        mallopt(_TOP_PAD, _PAD)  # and grows in large pieces
