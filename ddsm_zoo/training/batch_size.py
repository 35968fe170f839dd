"""How many images fit into memory, found before a run from what one of them takes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import logging
import math
import os
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.train_state import Objective
from ddsm_zoo.utils.distributed import all_reduce_min, init_process_group, world_size

# The images of one step for which a recipe that leaves the batch size open states its learning rates
REFERENCE = 8
# More costs time alone: on the CPU a step takes as long as its images, on a GPU the gain levels off.
_LARGEST = {"cpu": 8, "cuda": 16}
# An epoch has at least so many steps, where the images suffice.
_STEPS = 4
# The share of the free memory to count on, and what a step takes beside what its forward pass keeps: gradients of
# activations, workspaces, fragments (docs/fine-tuning.md).
_USABLE, _OVERHEAD = 0.8, 1.5
# Beside the weights: gradients, two moments, the average
_COPIES = 5
# Memory limits of containers and what counts against them
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

logger = logging.getLogger(__name__)


def find_batch_size(recipe: Recipe, model: nn.Module, channels: int, images: int, free: int | None = None) -> Recipe:
    """The recipe with a batch size in the place of 0, and the learning rates that go with it.

    It is the largest power of two that fits into ``free`` bytes (unless given, those of the GPU or of the machine), of
    which an epoch of ``images`` has at least four, up to 8 on a CPU and 16 on a GPU. Of several processes that were
    launched together each takes so many, where least is free: all come to the same batch. ``lr`` and ``backbone_lr``
    are taken to be for 8 images in a step, and follow the number of images for SGD, its square root for AdamW.
    ``model`` is left as it is. Raises ValueError when not even one image fits.
    """
    init_process_group()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = all_reduce_min(free_memory(device) if free is None else free)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    each = _OVERHEAD * kept_bytes(model, recipe, channels)
    fitting = int((_USABLE * free - _COPIES * weights) // each)
    if fitting < 1:
        raise ValueError(
            f"training on one crop of {recipe.crop_size[0]} x {recipe.crop_size[1]} takes about "
            f"{(each + _COPIES * weights) / 1e9:.1f} GB and {_USABLE * free / 1e9:.1f} GB can be used; choose a "
            "smaller crop_size, precision bf16 or a smaller model"
        )
    most = min(fitting, _LARGEST[device.type], max(1, images // (_STEPS * world_size())))
    size = 2 ** int(math.log2(most)) * world_size()
    growth = size * recipe.gradient_accumulation / REFERENCE
    factor = growth if recipe.optimizer == "sgd" else math.sqrt(growth)
    resolved = dataclasses.replace(
        recipe,
        batch_size=size,
        lr=recipe.lr * factor,
        backbone_lr=None if recipe.backbone_lr is None else recipe.backbone_lr * factor,
    )
    logger.info("batch_size %d (%d would fit into memory), lr %.2g", size, fitting, resolved.lr)
    return resolved


def kept_bytes(model: nn.Module, recipe: Recipe, channels: int) -> int:
    """What the forward pass keeps of one image for the backward pass, in bytes, weights not counted."""
    probe = copy.deepcopy(model).train()
    objective = Objective(probe, create_loss(recipe, cast(int, probe.num_classes), 255), recipe.auxiliary_weight)
    own = {tensor.untyped_storage().data_ptr() for tensor in itertools.chain(probe.parameters(), probe.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision != "no")
    with torch.random.fork_rng(devices=[]), half, torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        image = torch.zeros(1, channels, *recipe.crop_size)
        # Held until all is counted: the memory of what is let go could be given out again.
        loss = objective(image, torch.zeros(1, *recipe.crop_size, dtype=torch.int64))
    del loss
    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still have on the device; on the CPU as the machine and its containers allow."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        import psutil
    except ModuleNotFoundError as error:
        raise LookupError("finding a batch size needs the package psutil: pip install 'ddsm-zoo[train]'") from error
    free = [int(psutil.virtual_memory().available)]
    for limit, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not in a container, or one without a limit
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(free)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
