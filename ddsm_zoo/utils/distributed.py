"""The processes that work together, as `accelerate launch` or `torchrun` starts them; one alone otherwise."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributed as dist


@contextlib.contextmanager
def init_distributed() -> Iterator[bool]:
    """Join the processes that this one was launched with, if any, and say whether it is the one to report."""
    leave = init_process_group()
    try:
        yield rank() == 0
    finally:
        if leave:
            dist.destroy_process_group()


def init_process_group() -> bool:
    """Join the processes that this one was launched with; False where there are none or it has done so before."""
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
    """The indices below ``total`` that fall to this process; every index falls to exactly one."""
    return range(rank(), total, world_size())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    return _reduced(tensor, dist.ReduceOp.SUM) if _together() else tensor


def all_reduce_min(number: int) -> int:
    """The smallest of the numbers that the processes have."""
    return int(_reduced(torch.tensor(number), dist.ReduceOp.MIN)) if _together() else number


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    shared = tensor.to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
    dist.all_reduce(shared, operation)
    return shared.cpu()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
