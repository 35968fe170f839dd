"""Training loop for one process or many, resumable to the bit.

The randomness of a step is seeded from (seed, epoch, step) and never carried along. A resumed run therefore needs no
random state to continue with the same batches, crops and dropout masks.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import logging
import math
import platform
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddsm_zoo.errors import ArgumentError, UserError
from ddsm_zoo.layers.sampler import TapCounts
from ddsm_zoo.training.checkpoint import (
    RunLog,
    check_continues,
    has_state,
    load_last_state,
    promote_state,
    save_last_state,
    save_weights,
)
from ddsm_zoo.training.dataloader import Samples, in_batches, load, mix_seeds, shuffled
from ddsm_zoo.training.optimizer import schedule
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.train_state import TrainState
from ddsm_zoo.utils.allocator import keep_freed_memory
from ddsm_zoo.utils.distributed import rank, shard
from ddsm_zoo.utils.files import CheckpointError
from ddsm_zoo.utils.signals import interruptible

logger = logging.getLogger(__name__)


class TrainingDiverged(UserError, ValueError):
    """Raised when the loss or a weight becomes infinite or NaN. Nothing is saved after that."""

    kind = "diverged"


@dataclass(frozen=True, kw_only=True)
class ProgressEvent:
    """Progress of a run.

    Attributes:
        phase: "check" (images of the data check before the run), "train" (optimizer steps) or "validate" (images).
        epoch: Current epoch, from 1.
        epochs: Number of epochs of the run.
        done: Finished steps of the whole run, or finished images.
        total: Total number of steps of the run, or of images.
        loss: Running mean of the epoch.
        miou: mIoU of the latest validation, 0 to 1, nan before the first.
    """

    phase: Literal["check", "train", "validate"]
    epoch: int
    epochs: int
    done: int
    total: int
    loss: float
    miou: float


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Callbacks of a run, and the data that identifies it.

    Attributes:
        order: Maps (images, seed, epoch) to the image indices of an epoch. It must depend on nothing else, because
            every process and every resumed run calls it again. An epoch may have more or fewer indices than there are
            images, but every epoch equally many.
        progress: Called in the first process after each step and after each batch of a validation.
        observe: Called in the first process at the end of each epoch, with its log entry and the evaluated model. The
            entry has "miou" if the epoch was validated.
        identity: Plain data by name that must be equal when the run is resumed, such as the class names.
    """

    order: Callable[[int, int, int], Sequence[int]] = shuffled
    progress: Callable[[ProgressEvent], None] | None = None
    observe: Callable[[Mapping[str, Any], nn.Module], None] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Position:
    """Position of a run: finished epochs, then optimizer steps within the epoch with their summed loss and time."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    miou: float = math.nan
    best_miou: float = math.nan
    best_epoch: int = 0
    taps: dict[str, dict[str, float]] = field(default_factory=dict)
    """`TapCounts` of the last step as plain data, by sampler."""


def fit(
    model: nn.Module,
    recipe: Recipe,
    train_set: Samples,
    val_set: Samples,
    out_dir: str | Path,
    *,
    ignore_index: int = 255,
    resume: bool = False,
    hooks: Hooks = Hooks(),
) -> dict[str, Any]:
    """Train ``model`` in place.

    Writes ``last/`` (weights and state), ``best/model.safetensors`` and ``log.jsonl``. "Best" is the highest mIoU on
    ``val_set``. The weights written are the averaged ones if the recipe averages.

    The state is saved after every epoch and, with the recipe's ``save_every``, within it. SIGINT or SIGTERM ends the
    run after the current step and saves its state. A second SIGINT raises KeyboardInterrupt. An error while images are
    loaded or validated, such as a killed loading process, leaves the state after the last step too (one process only).

    If the model samples features, the log has three numbers for each epoch and sampler, from its last step: the share
    of taps that read the map (``taps_on_map``), the share of positions without such a tap (``blind``), and the mean
    offset (``mean_offset``). A sampler that has lost more than half of the plain grid's taps causes one warning:
    outside the map there are zeros, and no gradient leads back.

    Args:
        model: Maps images (N, C, H, W) to logits (N, K, H, W) and has ``num_classes``. If it has an ``auxiliary`` that
            is not None, ``model(images, auxiliary=True)`` gives a dict of two logits for the loss, "out" and "aux".
        recipe: Training settings. ``batch_size`` must not be 0.
        train_set: Training images (C, H, W) with class ids (H, W).
        val_set: Validation images (C, H, W) with class ids (H, W).
        out_dir: Folder of the run.
        ignore_index: Class id of pixels that count neither in the loss nor in the scores.
        resume: Continue the run in ``out_dir`` exactly from its saved state, or start if there is none. If the last
            state is damaged, the run continues from the previous one.
        hooks: Callbacks and order of the images.

    Returns:
        A summary with ``epochs`` (finished ones), ``interrupted``, ``miou``, ``best_miou``, ``best_epoch``, and the
            paths of the weights ``last`` and ``best``. Before the first validation, both mIoU are nan and
            ``best_epoch`` is 0.

    Raises:
        TrainingDiverged: The loss or a weight is not finite.
        CheckpointError: The saved state does not fit, is damaged, or exists without ``resume``.
        OutputError: A file cannot be written.
        WorkerError: The loading processes cannot start, or one was killed.
        ValueError: The data or the batch size cannot be trained on.
    """
    for name, samples in (("training", train_set), ("validation", val_set)):
        if not len(samples):
            raise ArgumentError(
                f"the {name} set has 0 images, expected at least 1", kind="missing-split", name=name, got=0
            )
    for name, left_open in (("precision", "auto"), ("batch_size", 0), ("ema_decay", "auto"), ("frozen_norms", "auto")):
        if getattr(recipe, name) == left_open:
            raise ArgumentError.of(name, left_open, "a value, which training.run.train finds")
    keep_freed_memory()
    train_state = TrainState(model, recipe, ignore_index)
    run = _Run(train_state, recipe, train_set, val_set, Path(out_dir), hooks)
    run.begin(resume)
    with interruptible() as interrupted:
        return run.finish(interrupted)


class _Run:
    """Parts of one training run and its position."""

    def __init__(
        self, train_state: TrainState, recipe: Recipe, train_set: Samples, val_set: Samples, out_dir: Path, hooks: Hooks
    ) -> None:
        self.train_state, self.recipe, self.hooks = train_state, recipe, hooks
        self.train_set, self.val_set, self.out_dir = train_set, val_set, out_dir
        self.position = _Position()
        self.warned: set[str] = set()  # samplers whose lost taps were reported
        batches = self._batches(epoch=0)
        if recipe.batch_size % train_state.processes:
            raise ArgumentError.of(
                "batch_size", recipe.batch_size, f"a multiple of the {train_state.processes} processes"
            )
        if len(batches[0]) < train_state.processes:
            raise ArgumentError(
                f"the training set has {len(batches[0])} images, expected at least one for each of the "
                f"{train_state.processes} processes",
                kind="processes",
                got=len(batches[0]),
                expected=train_state.processes,
            )
        self.images_per_epoch = sum(map(len, batches))
        self.batches_per_epoch = len(batches)
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / recipe.gradient_accumulation)
        self.steps = recipe.epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        """Number of finished optimizer steps of the run."""
        return self.position.epoch * self.steps_per_epoch + self.position.step

    def begin(self, resume: bool) -> None:
        """Restore the state of ``out_dir`` if there is one, and open the log."""
        resumed = has_state(self.out_dir)
        if resumed and not resume:
            raise CheckpointError(
                f"{self.out_dir} holds the state of a run: resume it (--resume), or choose another folder",
                kind="run-exists",
                path=self.out_dir,
            )
        if resume and not resumed and self.train_state.is_main:
            logger.warning("%s holds no state to resume: a new run begins", self.out_dir)
        path = self._restore() if resumed else None
        self.train_state.wait()
        if self.train_state.is_main:
            promote_state(self.out_dir, path)
            self.log = RunLog(self.out_dir / "log.jsonl", self.position.epoch if resumed else None)
            self.log.write(
                "resume" if resumed else "start",
                recipe=self.recipe.to_plain(),
                images={"train": len(self.train_set), "val": len(self.val_set)},
                processes=self.train_state.processes,
                device=str(self.train_state.device),
                position={"epoch": self.position.epoch, "step": self.position.step},
                versions=_versions(),
            )

    def finish(self, interrupted: threading.Event) -> dict[str, Any]:
        """Train from the position to the end, or until interrupted."""
        stopped = False
        while not self._finished() and not stopped:
            stopped = self._train_epoch(interrupted)
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

    def _finished(self) -> bool:
        """Return True if the run is over.

        Depends on recipe and position alone, so that resuming a finished run ends at once.
        """
        recipe, position = self.recipe, self.position
        stale = (position.epoch - position.best_epoch) // recipe.validate_every  # validations since the best one
        return position.epoch >= recipe.epochs or 0 < recipe.patience <= stale

    def _train_epoch(self, interrupted: threading.Event) -> bool:
        """Train the rest of the epoch. Return True if it was interrupted."""
        recipe, position = self.recipe, self.position
        done = position.step * recipe.gradient_accumulation
        batches = self._batches(position.epoch)[done:]
        if hasattr(self.train_set, "set_epoch"):
            self.train_set.set_epoch(position.epoch)
        own = [batch[rank() :: self.train_state.processes] for batch in batches]
        with contextlib.closing(self._load(self.train_set, batch_sampler=own)) as loader:
            return self._take_steps(loader, interrupted)

    def _take_steps(self, loader: Iterator[tuple[Tensor, Tensor]], interrupted: threading.Event) -> bool:
        recipe, position = self.recipe, self.position
        self.train_state.train_mode()
        began = time.perf_counter() - position.seconds
        stopped = False
        while position.step < self.steps_per_epoch and not stopped:
            torch.manual_seed(mix_seeds(recipe.seed, position.epoch, position.step, rank()))
            with self._kept():
                micro = list(itertools.islice(loader, recipe.gradient_accumulation))
            closing = position.step == self.steps_per_epoch - 1
            with self.train_state.watch_taps() if closing else contextlib.nullcontext({}) as counts:
                loss, stopped = self.train_state.backward(micro, interrupted.is_set)
            if closing:
                position.taps = {name: self.train_state.of_all(asdict(count)) for name, count in counts.items()}
            if not math.isfinite(loss):
                raise self._diverged("the loss", f"is {loss} in epoch {position.epoch + 1}, step {position.step + 1}")
            self.train_state.update(schedule(self.step, self.steps, recipe))
            position.loss_sum += loss
            position.step += 1
            position.seconds = time.perf_counter() - began
            self._report("train", self.step, self.steps)
            # Save at the end of an epoch too, because a validation can take long.
            due = recipe.save_every and (self.step % recipe.save_every == 0 or position.step == self.steps_per_epoch)
            if due and not stopped:
                self._check_weights()
                self._save_state()
        return stopped

    def _close_epoch(self) -> None:
        """Validate if due, log, save the weights if they are the best so far, and go to the next epoch."""
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
            with self._kept():
                scores = self._validate()
            position.miou = scores["miou"]
            better = math.isnan(position.best_miou) or position.miou > position.best_miou
            entry |= {
                "miou": scores["miou"],
                "iou": scores["iou"],
                "best": better,
                "validation_seconds": round(time.perf_counter() - began, 2),
            }
        taps = {name: TapCounts.of(counts) for name, counts in position.taps.items()}
        if taps:
            entry["taps_on_map"] = {name: round(counts.on_map, 4) for name, counts in taps.items()}
            entry["blind"] = {name: round(counts.blind_share, 4) for name, counts in taps.items()}
            entry["mean_offset"] = {name: round(counts.mean_offset, 4) for name, counts in taps.items()}
        logger.info("epoch %d of %d: %s", number, recipe.epochs, _in_words(entry))
        self._warn_of_lost_taps(taps)
        if better:
            position.best_miou, position.best_epoch = position.miou, number
        model = self.train_state.evaluated()
        if self.train_state.is_main:
            if better:
                save_weights(self.out_dir / "best" / "model.safetensors", model.state_dict())
            self.log.write("epoch", **entry)
            if self.hooks.observe:
                self.hooks.observe(entry, model)
        position.epoch, position.step, position.loss_sum, position.seconds = number, 0, 0.0, 0.0

    def _warn_of_lost_taps(self, taps: Mapping[str, TapCounts]) -> None:
        lost = {name: counts for name, counts in taps.items() if counts.kept < 0.5 and name not in self.warned}
        self.warned |= lost.keys()
        if lost and self.train_state.is_main:
            named = ", ".join(f"{name} (taps on the map {counts.on_map:.0%})" for name, counts in lost.items())
            logger.warning(
                "more than half of the taps left the map in %s: they read zeros and get no gradient; "
                "lower sampler_lr_mult (it is %g) or lr",
                named,
                self.recipe.sampler_lr_mult,
            )

    def _validate(self) -> dict[str, Any]:
        own = shard(len(self.val_set))
        with contextlib.closing(self._load(self.val_set, batch_size=None, sampler=own)) as samples:
            return self.train_state.validate(samples, lambda done: self._report("validate", done, len(own)))

    def _save(self) -> None:
        """Write the weights, then the state. The state is last because it refers to the weights."""
        model = self.train_state.evaluated()
        if self.train_state.is_main:
            save_weights(self.out_dir / "last" / "model.safetensors", model.state_dict())
        self._save_state()

    def _save_state(self) -> None:
        state = self.train_state.state_dict()
        if self.train_state.is_main:
            about = {
                "recipe": self.recipe.to_plain(),
                "images": len(self.train_set),
                "identity": dict(self.hooks.identity),
                "position": asdict(self.position),
            }
            save_last_state(self.out_dir, {**about, **state})
        self.train_state.wait()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Save the state if the block, which must not change it, raises an error. Other processes could not join in."""
        try:
            yield
        except Exception:
            if self.position.step and self.train_state.processes == 1 and not self.train_state.not_finite():
                with contextlib.suppress(OSError):  # report the original error, not a failed save
                    self._save_state()
                    logger.warning("the state after step %d is saved in %s", self.step, self.out_dir)
            raise

    def _restore(self) -> Path:
        path, state = load_last_state(self.out_dir)
        check_continues(path, state, self.recipe, len(self.train_set), self.hooks.identity)
        try:
            self.train_state.load_state_dict(state)
            self.position = _Position(**state["position"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path} does not fit this model: {reason}", kind="weights-mismatch", path=path
            ) from error
        return path

    def _check_weights(self) -> None:
        """Check that the weights are finite: the last step can break them without a loss that shows it."""
        name = self.train_state.not_finite()
        if name:
            raise self._diverged(name, f"is not finite in epoch {self.position.epoch + 1}")

    def _diverged(self, name: str, problem: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{name} {problem}: training diverged, nothing was saved since; lower lr (it is {self.recipe.lr}), "
            "raise warmup_steps or set clip_norm",
            name=name,
        )

    def _report(self, phase: Literal["train", "validate"], done: int, total: int) -> None:
        if self.hooks.progress and self.train_state.is_main:
            position = self.position
            self.hooks.progress(
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
        return in_batches(self.hooks.order(len(self.train_set), self.recipe.seed, epoch), self.recipe.batch_size)

    def _load(self, samples: Samples, **order: Any) -> Generator[tuple[Tensor, Tensor], None, None]:
        return load(
            samples,
            workers=self.recipe.workers,
            seed=mix_seeds(self.recipe.seed, self.position.epoch),
            pin_memory=self.train_state.device.type == "cuda",
            **order,
        )


def _in_words(entry: Mapping[str, Any]) -> str:
    """Format an epoch in one line: loss, mIoU if validated, taps on the map if there are any."""
    words = [f"loss {entry['loss']:.4f}"]
    if "miou" in entry:
        words.append(f"mIoU {entry['miou']:.2%}")
    if shares := entry.get("taps_on_map"):
        fewest = min(shares, key=shares.__getitem__)
        mean = sum(shares.values()) / len(shares)
        words.append(f"taps on the map {mean:.0%} (fewest {shares[fewest]:.0%}, {fewest})")
    return ", ".join(words)


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "accelerate", "timm")}
    return {"python": platform.python_version(), **packages}
