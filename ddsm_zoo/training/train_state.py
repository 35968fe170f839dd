"""Model, optimizer and averaged weights of a run, data-parallel over processes with `accelerate`.

Each process holds the whole model, so a run may be resumed with more processes or fewer.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddsm_zoo.errors import ArgumentError, PackageError
from ddsm_zoo.inference.scores import predict_ids
from ddsm_zoo.layers import resize
from ddsm_zoo.layers.sampler import TapCounts, watch_taps
from ddsm_zoo.metrics import ConfusionMatrix
from ddsm_zoo.training.dataloader import stack_equal
from ddsm_zoo.training.freezing import freeze, freeze_norm_stats
from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.optimizer import average_weights, create_optimizer, set_learning_rate, warn_of_high_rate
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.distributed import all_reduce_sum
from ddsm_zoo.utils.pointwise import fast_pointwise

Batch = tuple[Tensor, Tensor]

logger = logging.getLogger(__name__)


class Objective(nn.Module):
    """Model and loss as one module, (images, targets) -> loss, so that data-parallel wrappers see one forward pass."""

    def __init__(self, model: nn.Module, loss: nn.Module, auxiliary_weight: float) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.auxiliary_weight = auxiliary_weight

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with_auxiliary = getattr(self.model, "auxiliary", None) is not None
        with fast_pointwise(self.model, images):
            logits = self.model(images, auxiliary=True) if with_auxiliary else self.model(images)
        if not with_auxiliary:
            return cast(Tensor, self.loss(logits, targets))
        loss = self.loss(logits["out"], targets) + self.auxiliary_weight * self.loss(logits["aux"], targets)
        return cast(Tensor, loss)


class TrainState:
    """Model, optimizer and averaged weights in training. Every process must call each method, in the same order."""

    def __init__(self, model: nn.Module, recipe: Recipe, ignore_index: int) -> None:
        _check_data_parallel()
        accelerate = _accelerate()
        # A process may train twice with different precision, which the shared state of accelerate would refuse.
        accelerate.state.AcceleratorState._reset_state()
        self._broadcast = accelerate.utils.broadcast
        # By default, accelerate lets several processes without an accelerator train independently.
        on_cpus = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
        self.accelerator = accelerate.Accelerator(mixed_precision=recipe.precision, cpu=on_cpus)
        self.recipe, self.ignore_index = recipe, ignore_index
        self.processes: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format

        model.to(self.device)
        if self.processes > 1:
            # Randomly initialized weights differ between the processes.
            self._broadcast(list(model.state_dict().values()))
        freeze(model, recipe)
        if self.is_main:
            warn_of_high_rate(model, recipe)
        if self.processes > 1 and self.device.type != "cpu":
            sync_batch_norm(model)
        elif self.processes > 1 and self.is_main and _learns_statistics(model):
            logger.warning(
                "batch norm sees the %d images of one process, not all %d of the batch: only GPUs synchronize it. "
                'For the result of one process use overrides = {norm = "group"}',
                recipe.batch_size // self.processes,
                recipe.batch_size,
            )
        # The type hints of nn.Module.to lack the call with a memory format alone
        self.model: nn.Module = cast(Any, model).to(memory_format=self.memory_format)
        self.average = average_weights(self.model, float(recipe.ema_decay)) if recipe.ema_decay else None
        self._loss = create_loss(recipe, cast(int, model.num_classes), ignore_index).to(self.device)
        objective = Objective(self.model, self._loss, recipe.auxiliary_weight)
        self._objective, self._optimizer = self.accelerator.prepare(objective, create_optimizer(self.model, recipe))

    def train_mode(self) -> None:
        self._objective.train()
        freeze_norm_stats(self.model)

    def backward(self, batches: Sequence[Batch], interrupted: Callable[[], bool]) -> tuple[float, bool]:
        """Compute the gradients of the loss over the batches of every process.

        Returns the loss, and True if ``interrupted`` returned True in any process. Each batch is weighted by its valid
        pixels. Parts of a batch, on other processes or in accumulation, therefore add up to the mean over the valid
        pixels of the whole batch.
        """
        masses = [self._loss.mass(targets) for _, targets in batches]
        total = float(all_reduce_sum(torch.tensor(sum(masses), dtype=torch.float64))) or 1.0
        loss_sum = torch.zeros((), device=self.device)
        for index, (images, targets) in enumerate(batches):
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._objective):
                with self.accelerator.autocast():
                    loss = self._objective(self._moved(images), targets.to(self.device, non_blocking=True))
                loss = loss * (masses[index] / total)
                # accelerate averages gradients over the processes, but the sum is needed.
                self.accelerator.backward(loss * self.processes)
            loss_sum += loss.detach()
        # One all-reduce for both, so that all processes stop at the same step.
        mean, stops = all_reduce_sum(torch.stack([loss_sum, loss_sum.new_tensor(float(interrupted()))])).tolist()
        return mean, stops > 0

    def watch_taps(self) -> AbstractContextManager[dict[str, TapCounts]]:
        """Watch the taps in the batches of this process, see `ddsm_zoo.layers.sampler.watch_taps`."""
        return watch_taps(self.model)

    def of_all(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Sum the counts over all processes. The sums are exact up to 2**53."""
        sums = all_reduce_sum(torch.tensor(list(counts.values()), dtype=torch.float64)).tolist()
        return dict(zip(counts, sums, strict=True))

    def update(self, factor: float) -> None:
        """Take one optimizer step at ``factor`` times the learning rates."""
        if self.recipe.clip_norm:
            self.accelerator.clip_grad_norm_(self._objective.parameters(), self.recipe.clip_norm)
        set_learning_rate(self._optimizer, factor)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.model)

    def evaluated(self) -> nn.Module:
        """Return the model to validate and publish: the averaged one if there is one."""
        return self.average.module if self.average else self.model

    def not_finite(self) -> str | None:
        """Return the name of a tensor of the model that holds an infinity or NaN, None if there is none."""
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                return name
        return None

    @torch.no_grad()
    def validate(self, samples: Iterable[Batch], report: Callable[[int], None]) -> dict[str, Any]:
        """Score the evaluated model on the samples of every process.

        ``report`` is called with the number of images that this process has finished.
        """
        model = self.evaluated()
        # Buffers differ between processes, except those of synchronized norms.
        self._broadcast(list(model.buffers()))
        model.eval()
        num_classes = cast(int, self.model.num_classes)
        confusion = ConfusionMatrix(num_classes, self.ignore_index)
        fixed = num_classes == 1 and self.recipe.threshold != "auto"
        threshold = cast(float, self.recipe.threshold) if fixed else None
        done = 0
        for images, targets in stack_equal(samples, self.recipe.batch_size // self.processes):
            with self.accelerator.autocast():
                logits = model(self._moved(images))
            confusion.update(predict_ids(resize(logits, (targets.shape[-2], targets.shape[-1])), threshold), targets)
            done += len(images)
            report(done)
        confusion.matrix = all_reduce_sum(confusion.matrix)
        return confusion.compute()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from, as tensors and plain data."""
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`. Raises RuntimeError or ValueError for the state of another model."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def wait(self) -> None:
        """Wait until all processes reach this point."""
        self.accelerator.wait_for_everyone()

    def _moved(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)


def sync_batch_norm(model: nn.Module) -> None:
    """Synchronize every batch norm of ``model`` over all GPUs, in place, with the same parameters.

    A model's own method of this name is used if it has one. Torch's conversion replaces all other batch norms.

    Raises:
        ValueError: A batch norm has a class of its own, which torch would silently replace by a plain one.
    """
    if hasattr(model, "sync_batch_norm"):
        cast(Any, model).sync_batch_norm()
        return
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, norm in norms.items():
        if type(norm) is not nn.BatchNorm2d:
            raise ArgumentError(
                f"{name} is a {type(norm).__name__}, expected torch's BatchNorm2d, the only one that torch can "
                "synchronize; give the model a method sync_batch_norm() that replaces its batch norms",
                name=name,
                got=type(norm).__name__,
                expected="BatchNorm2d",
            )
    for name, norm in norms.items():
        model.set_submodule(name, cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(norm))


def _learns_statistics(model: nn.Module) -> bool:
    """Return True if any batch norm is not frozen."""
    model.train()
    freeze_norm_stats(model)
    return any(isinstance(module, nn.BatchNorm2d) and module.training for module in model.modules())


def _accelerate() -> Any:
    """Import accelerate when training begins. Raises LookupError if it is not installed."""
    try:
        import accelerate
        import accelerate.state
        import accelerate.utils
    except ModuleNotFoundError as error:
        raise PackageError.needed("training needs", error.name, "train") from error
    return accelerate


def _check_data_parallel() -> None:
    """Raise ValueError if `accelerate launch` is configured to shard the model instead of the batch."""
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise ArgumentError(
                f"accelerate is configured for {engine}, expected data parallelism: "
                f"launch without --use_{engine.lower()} and without it in accelerate's config file",
                kind="processes",
                got=engine,
            )
