"""Peak working memory of a network, and the error for too little of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddsm_zoo.errors import ArgumentError


def working_memory(call: Callable[[], object]) -> int:
    """Measure the peak bytes of all tensors that ``call`` has made and not yet released."""
    with _Living() as living:
        call()
    peak: int = living.peak
    return peak


@contextmanager
def enough_memory(work: str, advice: str) -> Iterator[None]:
    """Raise a ValueError that names the ``work``, a verb, and ends with the ``advice`` if it runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch has an out-of-memory class on GPUs only
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "DefaultCPUAllocator" not in str(error):
            raise
        raise ArgumentError(f"not enough memory to {work}; {advice}", kind="out-of-memory") from error


class _Living(TorchDispatchMode):
    """Mode that adds up the storages that operations make, until each is released."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_place(tensor) for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            place = _place(tensor)
            if place not in given and place not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[place] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, place, None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


def _tensors(tree: object) -> list[Tensor]:
    # a sparse tensor has no storage of its own; the dense ones that it is made of are counted
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [leaf for leaf in leaves if leaf.layout is torch.strided]


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
