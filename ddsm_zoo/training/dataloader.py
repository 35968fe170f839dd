"""Order and loading of samples, as functions of (seed, epoch) alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from ddsm_zoo.utils.signals import ignore_interrupt


class Samples(Protocol):
    """Map-style data set of float images (C, H, W) and int64 class ids (H, W).

    ``set_epoch(epoch)`` is called before each epoch if it exists.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


def mix_seeds(*numbers: int) -> int:
    """Combine several numbers into one seed. Neighbouring numbers give unrelated seeds."""
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
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one pass over the samples in the ``order`` given by DataLoader's ``sampler`` or ``batch_sampler``.

    The workers start with each pass, so they see the changes of ``set_epoch``. There are never more workers than usable
    cores. Exceptions of a sample are raised here unchanged.
    """
    if "batch_sampler" in order:
        order["collate_fn"] = _collate
    loader: DataLoader[Any] = DataLoader(
        cast(Any, _Caught(samples)),
        num_workers=min(workers, usable_cores()),
        pin_memory=pin_memory,
        worker_init_fn=ignore_interrupt,
        generator=torch.Generator().manual_seed(seed),
        **order,
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


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
        except (ValueError, LookupError, OSError) as error:
            return error


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, Exception)), None) or default_collate(items)


def stack_equal(samples: Iterable[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Stack neighbours of equal size into batches of at most ``batch_size``."""
    for _, group in itertools.groupby(samples, key=lambda sample: sample[0].shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield torch.stack([image for image, _ in batch]), torch.stack([mask for _, mask in batch])
