"""Find the largest batch size that fits into memory, from the memory that one image takes."""

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

from ddsm_zoo.errors import ArgumentError, PackageError
from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.train_state import Objective
from ddsm_zoo.utils.distributed import all_reduce_min, init_process_group, world_size

# Images per step to which the learning rates of a recipe with batch_size = 0 refer
REFERENCE = 8
# Larger batches save no time: on a CPU a step takes as long as its images, on a GPU the gain levels off.
_LARGEST = {"cpu": 8, "cuda": 16}
# Minimum number of steps per epoch, if there are enough images
_STEPS = 4
# Runs of fewer steps get smaller batches, but not below this size: batches of 2 cost more and scored no higher
_RUN_STEPS, _SMALLEST = 120, 4
# Usable share of the free memory, and total memory of a step relative to its saved activations: gradients of
# activations, workspaces, fragments (docs/fine-tuning.md).
_USABLE, _OVERHEAD = 0.8, 1.5
# Copies of the weights: the model's own, gradients, two moments, the average
_COPIES = 5
# Memory limits of containers and the usage that counts against them
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

logger = logging.getLogger(__name__)


def find_batch_size(recipe: Recipe, model: nn.Module, channels: int, images: int, free: int | None = None) -> Recipe:
    """Replace a batch size of 0 in the recipe, and scale its learning rates to match.

    The batch size per process is the largest power of two that fits into memory, at most 8 on a CPU and 16 on a GPU. An
    epoch of ``images`` keeps at least four steps if there are enough images. A run that would have fewer than 120 steps
    gets smaller batches, of at least 4. In distributed runs every process uses the same batch size, set by the one with
    the least free memory. ``lr`` and ``backbone_lr`` are taken as rates for 8 images per step. They scale linearly with
    the number of images for SGD, and with its square root for AdamW.

    Args:
        recipe: Recipe whose batch size is open.
        model: Model to measure. It is left unchanged.
        channels: Number of input channels.
        images: Number of training images.
        free: Free memory in bytes. Unless given, that of the GPU or of the machine.

    Returns:
        The recipe with batch size and learning rates filled in.

    Raises:
        ValueError: Not even one image fits into memory.
    """
    init_process_group()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = all_reduce_min(free_memory(device) if free is None else free)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    each = _OVERHEAD * kept_bytes(model, recipe, channels)
    fitting = int((_USABLE * free - _COPIES * weights) // each)
    if fitting < 1:
        raise ArgumentError(
            f"training on one crop of {recipe.crop_size[0]} x {recipe.crop_size[1]} takes about "
            f"{(each + _COPIES * weights) / 1e9:.1f} GB and {_USABLE * free / 1e9:.1f} GB can be used; choose a "
            "smaller crop_size, precision bf16 or a smaller model",
            kind="out-of-memory",
            name="crop_size",
            got=recipe.crop_size,
        )
    steps = recipe.epochs * images // (_RUN_STEPS * recipe.gradient_accumulation * world_size())
    most = min(fitting, _LARGEST[device.type], max(1, images // (_STEPS * world_size())), max(_SMALLEST, steps))
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
    """Measure the bytes that the forward pass keeps of one image for the backward pass, without the weights."""
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
        # Kept alive while counting: a freed storage could be reused and counted once.
        loss = objective(image, torch.zeros(1, *recipe.crop_size, dtype=torch.int64))
    del loss
    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on the device.

    On the CPU, memory limits of containers count too.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        import psutil
    except ModuleNotFoundError as error:
        raise PackageError.needed("finding a batch size needs", "psutil", "train") from error
    free = [int(psutil.virtual_memory().available)]
    for limit, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not in a container, or one without a limit
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(free)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
