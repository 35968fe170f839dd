"""The order and the delivery of samples, as functions of (seed, epoch) alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddsm_zoo.engine.interrupt import ignore_interrupt


class Samples(Protocol):
    """Pairs of a float image (C, H, W) and int64 class ids (H, W), by index.

    Where it has ``set_epoch(epoch)``, that is called before each epoch.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


def mix_seeds(*numbers: int) -> int:
    """One seed out of several numbers; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The indices of each batch of a shuffled epoch; a smaller last batch is left out unless it is the only one."""
    generator = torch.Generator().manual_seed(mix_seeds(seed, epoch))
    order = torch.randperm(count, generator=generator).tolist()
    used = count - count % batch_size or count
    return [order[start : start + batch_size] for start in range(0, used, batch_size)]


def create_loader(samples: Samples, *, workers: int, seed: int, pin_memory: bool, **order: Any) -> DataLoader[Any]:
    """A loader for one pass, in the ``order`` that DataLoader's ``sampler`` or ``batch_sampler`` names.

    Its workers start with the pass, and so see what ``set_epoch`` changed.
    """
    return DataLoader(
        cast(Any, samples),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_interrupt,
        generator=torch.Generator().manual_seed(seed),
        **order,
    )


def stack_equal(samples: Iterable[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of at most ``batch_size`` neighbours of one size."""
    for _, group in itertools.groupby(samples, key=lambda sample: sample[0].shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield torch.stack([image for image, _ in batch]), torch.stack([mask for _, mask in batch])
