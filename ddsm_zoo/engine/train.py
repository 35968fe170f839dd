"""Training on `accelerate`: one process or many, resumable to the bit.

All randomness of a step is seeded from (seed, epoch, step), never carried along. So a run that was interrupted
needs no random state to go on with the batches, crops and dropout masks it would have had.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn

from ddsm_zoo.engine.checkpoint import (
    CheckpointError,
    RunLog,
    check_continues,
    discard_unfinished,
    load_state,
    save_state,
    save_weights,
)
from ddsm_zoo.engine.interrupt import interruptible
from ddsm_zoo.engine.loading import Samples, epoch_batches, load, mix_seeds, stack_equal
from ddsm_zoo.engine.losses import SegmentationLoss
from ddsm_zoo.engine.optimizer import average_weights, create_optimizer, schedule, set_learning_rate
from ddsm_zoo.engine.recipe import Recipe
from ddsm_zoo.metrics import ConfusionMatrix

logger = logging.getLogger(__name__)


class TrainingDiverged(ValueError):
    """The loss or a weight became infinite or NaN. Nothing was saved after that."""


@dataclass(frozen=True, kw_only=True)
class ProgressEvent:
    """Where a run stands: ``done`` of ``total`` optimizer steps of the run ("train"), or images of a validation.

    Before it begins, `training.run_recipe` counts the images that it has checked ("check").

    Epochs count from 1. ``loss`` is the running mean of the epoch, ``miou`` the latest validation's, nan before.
    """

    phase: Literal["check", "train", "validate"]
    epoch: int
    epochs: int
    done: int
    total: int
    loss: float
    miou: float


@dataclass
class _Position:
    """How far a run is: whole epochs, then optimizer steps within the epoch with their summed loss and time."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    miou: float = math.nan
    best_miou: float = math.nan
    best_epoch: int = 0


def train(
    model: nn.Module,
    recipe: Recipe,
    train_set: Samples,
    val_set: Samples,
    out_dir: str | Path,
    *,
    ignore_index: int = 255,
    resume: bool = False,
    progress: Callable[[ProgressEvent], None] | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place and write ``last/`` and ``best/model.safetensors``, ``last/state.pt`` and ``log.jsonl``.

    ``model`` maps (N, C, H, W) to logits (N, K, H, W) and has ``num_classes``; where its ``auxiliary`` is not None,
    ``forward_auxiliary`` gives a second set of logits for the loss. The weights written are the averaged ones if
    the recipe averages, and "best" means the highest mIoU on ``val_set``.

    With ``resume``, the run in ``out_dir`` goes on exactly where its state was saved, or starts if it has none. The
    first SIGINT ends the run after the step in hand with its state saved; a second one is KeyboardInterrupt.

    Returns a summary: epochs (finished ones), interrupted, miou, best_miou, best_epoch (0 and nan before the first
    validation), last and best (paths of the weights). Raises TrainingDiverged, CheckpointError for a state that
    does not fit, OutputError for one that cannot be written, and ValueError for data that cannot be trained on.
    """
    # A process may train twice with different precision, which the shared state of accelerate would refuse.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=recipe.precision)
    run = _Run(accelerator, model, recipe, train_set, val_set, Path(out_dir), ignore_index, progress)
    run.begin(resume)
    with interruptible() as interrupted:
        run.interrupted = interrupted
        return run.finish()


class _Objective(nn.Module):
    """Model and loss as one module, (images, targets) -> loss, so that data-parallel wrappers see one forward pass."""

    def __init__(self, model: nn.Module, loss: nn.Module, auxiliary_weight: float) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.auxiliary_weight = auxiliary_weight

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        if getattr(self.model, "auxiliary", None) is None:
            return cast(Tensor, self.loss(self.model(images), targets))
        logits, auxiliary_logits = cast(Any, self.model).forward_auxiliary(images)
        return cast(Tensor, self.loss(logits, targets) + self.auxiliary_weight * self.loss(auxiliary_logits, targets))


class _Run:
    """The parts of one training run and its position."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        recipe: Recipe,
        train_set: Samples,
        val_set: Samples,
        out_dir: Path,
        ignore_index: int,
        progress: Callable[[ProgressEvent], None] | None,
    ) -> None:
        processes = accelerator.num_processes
        for name, samples, least in (("training", train_set, processes), ("validation", val_set, 1)):
            if len(samples) < least:
                raise ValueError(f"the {name} set has {len(samples)} images, expected at least {least}")
        if recipe.batch_size % processes:
            raise ValueError(f"batch_size is {recipe.batch_size}, expected a multiple of the {processes} processes")
        self.accelerator, self.recipe, self.progress = accelerator, recipe, progress
        self.train_set, self.val_set, self.out_dir, self.ignore_index = train_set, val_set, out_dir, ignore_index
        self.position = _Position()
        self.interrupted = threading.Event()
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        batches = self._batches(epoch=0)
        self.images_per_epoch = sum(map(len, batches))
        self.batches_per_epoch = len(batches)
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / recipe.gradient_accumulation)
        self.steps = recipe.epochs * self.steps_per_epoch

        # The types of nn.Module.to leave out that it takes a memory format alone
        self.model = cast(Any, model.to(accelerator.device)).to(memory_format=self.memory_format)
        loss = SegmentationLoss(
            ignore_index=ignore_index, label_smoothing=recipe.label_smoothing, dice=recipe.dice, lovasz=recipe.lovasz
        )
        objective = _Objective(self.model, loss, recipe.auxiliary_weight)
        self.objective, self.optimizer = accelerator.prepare(objective, create_optimizer(self.model, recipe))
        self.average = average_weights(self.model, recipe.ema_decay) if recipe.ema_decay else None

    @property
    def evaluated(self) -> nn.Module:
        return self.average.module if self.average else self.model

    def begin(self, resume: bool) -> None:
        """Restore the state of ``out_dir`` if there is one and it is wanted, and open the log."""
        state_path = self.out_dir / "last" / "state.pt"
        resumed = state_path.exists()
        if resumed and not resume:
            raise CheckpointError(f"{self.out_dir} holds the state of a run: resume it, or choose another folder")
        if resumed:
            self._restore(state_path)
        if self.accelerator.is_main_process:
            discard_unfinished(self.out_dir)
            self.log = RunLog(self.out_dir / "log.jsonl", self.position.epoch if resumed else None)
            self.log.write(
                "resume" if resumed else "start",
                recipe=self.recipe.to_plain(),
                images={"train": len(self.train_set), "val": len(self.val_set)},
                processes=self.accelerator.num_processes,
                device=str(self.accelerator.device),
                position={"epoch": self.position.epoch, "step": self.position.step},
                versions=_versions(),
            )

    def finish(self) -> dict[str, Any]:
        """Train from the position to the last epoch, or until interrupted."""
        stopped = False
        while self.position.epoch < self.recipe.epochs and not stopped:
            stopped = self._train_epoch()
            self._check_weights()
            if not stopped:
                self._close_epoch()
            self._save()
        if stopped:
            logger.info("interrupted in epoch %d, state saved in %s", self.position.epoch + 1, self.out_dir)
        position = self.position
        return {
            "epochs": position.epoch,
            "interrupted": stopped,
            "miou": position.miou,
            "best_miou": position.best_miou,
            "best_epoch": position.best_epoch,
            "last": str(self.out_dir / "last" / "model.safetensors"),
            "best": str(self.out_dir / "best" / "model.safetensors"),
        }

    def _train_epoch(self) -> bool:
        """Train the rest of the epoch; whether it was interrupted."""
        recipe, position, accelerator = self.recipe, self.position, self.accelerator
        done = position.step * recipe.gradient_accumulation
        batches = self._batches(position.epoch)[done:]
        if hasattr(self.train_set, "set_epoch"):
            self.train_set.set_epoch(position.epoch)
        share = [batch[accelerator.process_index :: accelerator.num_processes] for batch in batches]
        loader = self._load(self.train_set, batch_sampler=share)
        self.objective.train()
        began = time.perf_counter() - position.seconds
        stopped = False
        while position.step < self.steps_per_epoch and not stopped:
            torch.manual_seed(mix_seeds(recipe.seed, position.epoch, position.step, accelerator.process_index))
            micro = min(recipe.gradient_accumulation, self.batches_per_epoch - done)
            loss, stopped = self._step(loader, micro)
            done += micro
            position.loss_sum += loss
            position.step += 1
            position.seconds = time.perf_counter() - began
            self._report("train", position.epoch * self.steps_per_epoch + position.step, self.steps)
        return stopped

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]], micro: int) -> tuple[float, bool]:
        """One optimizer step over ``micro`` batches: the mean loss, and whether a process was told to stop."""
        accelerator, recipe, position = self.accelerator, self.recipe, self.position
        step = position.epoch * self.steps_per_epoch + position.step
        set_learning_rate(self.optimizer, schedule(step, self.steps, recipe))
        total = torch.zeros((), device=accelerator.device)
        for remaining in reversed(range(micro)):
            images, targets = next(batches)
            images = images.to(accelerator.device, non_blocking=True).contiguous(memory_format=self.memory_format)
            targets = targets.to(accelerator.device, non_blocking=True)
            with accelerator.no_sync(self.objective) if remaining else contextlib.nullcontext():
                loss = self.objective(images, targets) / micro
                accelerator.backward(loss)
            total += loss.detach()
        # One reduction for both, so that all processes leave at the same step.
        told = torch.stack([total, total.new_tensor(float(self.interrupted.is_set()))])
        mean, stopped = cast(Tensor, accelerator.reduce(told, "mean")).tolist()
        if not math.isfinite(mean):
            raise self._diverged(f"the loss is {mean} in epoch {position.epoch + 1}, step {position.step + 1}")
        if recipe.clip_norm:
            accelerator.clip_grad_norm_(self.objective.parameters(), recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.model)
        return mean, stopped > 0

    def _close_epoch(self) -> None:
        """Validate if it is time, log, keep the weights if they are the best so far, and go to the next epoch."""
        recipe, position = self.recipe, self.position
        number = position.epoch + 1
        entry: dict[str, Any] = {
            "epoch": number,
            "loss": position.loss_sum / self.steps_per_epoch,
            "lr": recipe.lr * schedule(number * self.steps_per_epoch - 1, self.steps, recipe),
            "seconds": round(position.seconds, 2),
            "images_per_second": round(self.images_per_epoch / position.seconds, 2),
        }
        better = False
        if number % recipe.validate_every == 0 or number == recipe.epochs:
            began = time.perf_counter()
            scores = self._validate()
            position.miou = scores["miou"]
            better = math.isnan(position.best_miou) or position.miou > position.best_miou
            entry |= {
                "miou": scores["miou"],
                "iou": scores["iou"],
                "best": better,
                "validation_seconds": round(time.perf_counter() - began, 2),
            }
        score = f", mIoU {entry['miou']:.4f}" if "miou" in entry else ""
        logger.info("epoch %d of %d: loss %.4f%s", number, recipe.epochs, entry["loss"], score)
        if better:
            position.best_miou, position.best_epoch = position.miou, number
        if self.accelerator.is_main_process:
            if better:
                save_weights(self.out_dir / "best" / "model.safetensors", self.evaluated.state_dict())
            self.log.write("epoch", **entry)
        position.epoch, position.step, position.loss_sum, position.seconds = number, 0, 0.0, 0.0

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        accelerator, recipe, model = self.accelerator, self.recipe, self.evaluated
        # Each process has seen another last batch; without this it would validate with other running statistics.
        broadcast(list(model.buffers()))
        model.eval()
        confusion = ConfusionMatrix(cast(int, self.model.num_classes), self.ignore_index)
        share = range(accelerator.process_index, len(self.val_set), accelerator.num_processes)
        samples = self._load(self.val_set, batch_size=None, sampler=share)
        done = 0
        for images, targets in stack_equal(samples, recipe.batch_size // accelerator.num_processes):
            images = images.to(accelerator.device).contiguous(memory_format=self.memory_format)
            with accelerator.autocast():
                logits = model(images)
            confusion.update(logits.argmax(1), targets)
            done += len(images)
            self._report("validate", done, len(share))
        confusion.matrix = cast(Tensor, accelerator.reduce(confusion.matrix.to(accelerator.device), "sum")).cpu()
        return confusion.compute()

    def _save(self) -> None:
        """Write the state and the weights of this position."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "recipe": self.recipe.to_plain(),
                "images": len(self.train_set),
                "position": asdict(self.position),
                "model": self.model.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
            }
            save_state(self.out_dir / "last" / "state.pt", state)
            save_weights(self.out_dir / "last" / "model.safetensors", self.evaluated.state_dict())
        self.accelerator.wait_for_everyone()

    def _restore(self, path: Path) -> None:
        state = load_state(path)
        check_continues(path, state, self.recipe.to_plain(), len(self.train_set))
        try:
            self.model.load_state_dict(state["model"])
            if self.average:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} does not fit this model: {reason}") from error
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.position = _Position(**state["position"])

    def _check_weights(self) -> None:
        """A last step can spoil the weights without a loss to show it."""
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise self._diverged(f"{name} is not finite in epoch {self.position.epoch + 1}")

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what}: training diverged, nothing was saved since; lower lr (it is {self.recipe.lr}), "
            "raise warmup_steps or set clip_norm"
        )

    def _report(self, phase: Literal["train", "validate"], done: int, total: int) -> None:
        if self.progress and self.accelerator.is_main_process:
            position = self.position
            self.progress(
                ProgressEvent(
                    phase=phase,
                    epoch=position.epoch + 1,
                    epochs=self.recipe.epochs,
                    done=done,
                    total=total,
                    loss=position.loss_sum / position.step,
                    miou=position.miou,
                )
            )

    def _batches(self, epoch: int) -> list[list[int]]:
        return epoch_batches(len(self.train_set), self.recipe.batch_size, self.recipe.seed, epoch)

    def _load(self, samples: Samples, **order: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return load(
            samples,
            workers=self.recipe.workers,
            seed=mix_seeds(self.recipe.seed, self.position.epoch),
            pin_memory=self.accelerator.device.type == "cuda",
            **order,
        )


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "accelerate", "timm")}
    return {"python": platform.python_version(), **packages}
