"""Order and loading of samples, as functions of (seed, epoch) alone."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, get_worker_info

from ddsm_zoo.errors import UserError
from ddsm_zoo.utils.signals import ignore_interrupt

# Minimum free shared memory in bytes per loading process: its queues alone take some of it
_LEAST_SHARED = 2**16
_SHARED_ADVICE = (
    "load the data in the main process with --workers 0 (workers = 0 in the recipe), or give the container more "
    "shared memory: docker run --shm-size=8g, or --ipc=host"
)


class WorkerError(UserError, ChildProcessError):
    """Raised if loading processes cannot start or continue. The text is one line with the reason and what to do."""

    kind = "worker"


class Samples(Protocol):
    """Map-style data set of float images (C, H, W) and int64 class ids (H, W).

    ``set_epoch(epoch)`` is called before each epoch if it exists.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


def mix_seeds(*numbers: int) -> int:
    """Combine several numbers into one seed. Neighboring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """Return the indices below ``count`` in the order of an epoch, each once."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(mix_seeds(seed, epoch))).tolist()
    return order


def in_batches(order: Sequence[int], batch_size: int) -> list[list[int]]:
    """Split the order into batches. A smaller last batch is dropped unless it is the only one."""
    used = len(order) - len(order) % batch_size or len(order)
    return [list(order[start : start + batch_size]) for start in range(0, used, batch_size)]


def load(
    samples: Samples, *, workers: int, seed: int, pin_memory: bool, **order: Any
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield one pass over the samples in the ``order`` given by DataLoader's ``sampler`` or ``batch_sampler``.

    The workers start with each pass, so they see the changes of ``set_epoch``. There are never more workers than usable
    cores. Close the generator if you do not exhaust it: an exception's traceback would keep it and its workers alive.

    Exceptions of a sample are raised here unchanged. Raises WorkerError if the workers cannot start, or if one is
    killed or finds no shared memory for a batch.
    """
    workers = min(workers, usable_cores())
    loader: DataLoader[Any] = DataLoader(
        cast(Any, _Caught(samples)),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_interrupt,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),
        **order,
    )
    batches = _start(loader, workers)
    try:
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                lost = _worker_error(error)
                if lost is None:
                    raise
                raise lost from error.with_traceback(None)  # frames in the traceback would keep the workers alive
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        # Stops the workers now: they ignore SIGTERM, which Python sends them at its own exit.
        del batches


def _start(loader: DataLoader[Any], workers: int) -> Iterator[Any]:
    """Start the workers, without torch's handler of SIGCHLD.

    The handler would raise an error wherever the main thread is, between two writes too. Without it, a worker that was
    killed is noticed when its batch is missing, after at most five seconds.
    """
    _check_shared_memory(workers)
    handled = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if handled else None
    try:
        return iter(loader)
    except OSError as error:
        raise WorkerError(
            f"cannot start {workers} loading processes ({error.strerror or error}); use fewer with --workers, "
            "0 for none",
            got=workers,
        ) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _check_shared_memory(workers: int) -> None:
    """Raise WorkerError where shared memory is so small that torch could not even report its errors."""
    if not workers or sys.platform != "linux":
        return
    free = 0
    with contextlib.suppress(OSError):  # no shared memory on this machine
        free = shutil.disk_usage("/dev/shm").free  # noqa: S108 - its free space alone is read
    if free <= _LEAST_SHARED * (workers + 1):
        raise WorkerError(
            f"shared memory (/dev/shm) has {free // 1024} KiB free, too little for {workers} loading processes: "
            f"{_SHARED_ADVICE}",
            kind="shared-memory",
            got=free,
        )


def _worker_error(error: RuntimeError) -> WorkerError | None:
    """Put torch's report of a lost worker into one line. None for other errors."""
    text = str(error)
    if text.startswith("DataLoader worker (pid"):
        number = "".join(re.findall(r"\d+", text)[:1])
        return WorkerError(
            f"the loading process {number} was killed, usually because memory ran out: use fewer with --workers, 0 for "
            "none, or a smaller batch_size or crop_size",
            kind="worker-killed",
            got=number,
        )
    if "Too many open files" in text or "ancdata" in text:
        return WorkerError(
            "the loading processes have too many files open: raise the limit (ulimit -n 65536), or use fewer with "
            "--workers, 0 for none"
        )
    return None


def usable_cores() -> int:
    """Return the number of cores that the system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Caught:
    """Samples that return exceptions as values, because a worker would wrap them into the text of a traceback."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | Exception:
        try:
            return self.samples[index]
        except (ValueError, LookupError, OSError, MemoryError) as error:
            return error


def _collate(items: Any) -> Any:
    """Stack a list of samples. A single sample stays, and an exception takes the place of the batch that it spoils.

    A worker moves tensors into shared memory here, where a failure can be reported. Torch would do it in a thread that
    loses the batch, and the main process would wait for it forever.
    """
    if isinstance(items, Exception):
        return items
    if isinstance(items, list) and (errors := [item for item in items if isinstance(item, Exception)]):
        return errors[0]
    try:
        batch = default_collate(items) if isinstance(items, list) else items
        if get_worker_info() is not None:
            for tensor in batch:
                tensor.share_memory_()
    except RuntimeError as error:
        if not str(error).startswith("unable to "):
            raise
        return WorkerError(
            f"shared memory (/dev/shm) is too small for the batches: {_SHARED_ADVICE}", kind="shared-memory"
        )
    return batch


def stack_equal(samples: Iterable[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Stack neighbors of equal size into batches of at most ``batch_size``."""
    for _, group in itertools.groupby(samples, key=lambda sample: sample[0].shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield torch.stack([image for image, _ in batch]), torch.stack([mask for _, mask in batch])
