"""torch.distributed helpers for processes that `accelerate launch` or `torchrun` started, or a single process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributed as dist


@contextlib.contextmanager
def init_distributed() -> Iterator[bool]:
    """Join the process group of this launch, if any. Yield True in the process that reports."""
    leave = init_process_group()
    try:
        yield rank() == 0
    finally:
        if leave:
            dist.destroy_process_group()


def init_process_group() -> bool:
    """Join the process group of this launch. Return False if there is none or it was joined before."""
    if _together() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return True


def rank() -> int:
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    return dist.get_world_size() if _together() else 1


def shard(total: int) -> range:
    """Return the indices below ``total`` for this process. Every index belongs to exactly one process."""
    return range(rank(), total, world_size())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum over all processes, on the CPU."""
    return _reduced(tensor, dist.ReduceOp.SUM) if _together() else tensor


def all_reduce_min(number: int) -> int:
    """Return the smallest number over all processes."""
    return int(_reduced(torch.tensor(number), dist.ReduceOp.MIN)) if _together() else number


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    shared = tensor.to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
    dist.all_reduce(shared, operation)
    return shared.cpu()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
