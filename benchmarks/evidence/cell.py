"""One cell of a matrix in a process of its own: train, score, write the log."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.evidence.arms import build_arm
from benchmarks.evidence.folds import Fold
from benchmarks.evidence.matrix import Cell, Matrix
from ddsm_zoo import evaluate, resolve_data_config
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.models import Segmenter, complexity
from ddsm_zoo.training.loop import ProgressEvent
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.run import train
from ddsm_zoo.utils.files import to_json, write_json, write_text

BUSY, INTERRUPTED = 75, 130  # exit statuses
_RECORD = "cell.json"
_SCORED = ("miou", "boundary_f", "boundary_f_pixels", "boundary_iou", "iou", "protocol", "count", "versions")
_FREE = ("workers", "save_every")  # fields of a recipe that change no number


class OtherRunError(ValueError):
    """A log or a run folder that belongs to another cell, recipe or fold."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Files of one cell: the run's folder, its finished log, and what its process prints."""

    folder: Path
    log: Path

    @property
    def output(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.txt")

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")


def describe(matrix: Matrix, cell: Cell, fold: Fold) -> dict[str, Any]:
    """Everything that the figures of a cell depend on, as the first line of its log."""
    names = json.dumps([fold.train, fold.val]).encode()
    images = {"train": len(fold.train), "val": len(fold.val), "sha256": hashlib.sha256(names).hexdigest()}
    return {**describe_training(matrix, cell), "images": images}


def describe_training(matrix: Matrix, cell: Cell) -> dict[str, Any]:
    """What `describe` tells without the data: all but the fold's images."""
    return {
        "event": "cell",
        "arm": cell.arm,
        "fold": cell.fold,
        "seed": cell.seed,
        "backbone_weights": matrix.backbone_weights,
        "recipe": matrix.recipe_of(cell).to_plain(),
    }


def is_finished(place: Place, wanted: Mapping[str, Any]) -> bool:
    """Whether the log of the cell is there. Raises OtherRunError for a log or a run folder of something else."""
    if place.log.exists():
        lines = place.log.read_bytes().splitlines() or [b""]
        require_same(place.log, lines[0], wanted)
        if b'"event": "score"' not in lines[-1]:
            raise OtherRunError(f"{place.log} ends without a score; it stays as it is, remove it to train the cell")
        return True
    record = place.folder / _RECORD
    if record.exists():
        require_same(place.folder, record.read_bytes(), wanted)
    elif (place.folder / "log.jsonl").exists():
        raise OtherRunError(f"{place.folder} holds a run that is not of this matrix; move it or choose another folder")
    return False


def train_cell(matrix: Matrix, cell: Cell, data: str, fold: Fold, place: Place, parent: int | None = None) -> int:
    """Train and score one cell, from its saved state if there is one. Returns the exit status.

    Args:
        data: the fold's data set, such as ``camvid:FOLDER``.
        parent: process id of the runner. When that process is gone, the state is saved and the training ends.

    Raises:
        OtherRunError: the files in ``place`` belong to something else. They stay as they are.
    """
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.lock, timeout=0):
            return _train_locked(matrix, cell, data, fold, place, _watch(parent))
    except Timeout:
        print("another process is training it")
        return BUSY


def _train_locked(
    matrix: Matrix, cell: Cell, data: str, fold: Fold, place: Place, watch: Callable[[ProgressEvent], None]
) -> int:
    record, recipe = describe(matrix, cell, fold), matrix.recipe_of(cell)
    if is_finished(place, record):
        return 0
    write_json(place.folder / _RECORD, record)
    labels = open_dataset(data, "train").labels
    model = build_arm(matrix, cell.arm, labels, cell.seed)
    summary = train(recipe, data, place.folder, model=model, resume=True, source=matrix.recipe, progress=watch)
    if summary["interrupted"]:
        print("interrupted, its state is saved")
        return INTERRUPTED
    # The one validation was the last, so the saved model has the weights of the last step.
    assert summary["best_epoch"] == summary["epochs"] == recipe.epochs
    figures = evaluate(f"local-dir:{place.folder / 'best'}", data, boundary=True)
    lines = (place.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    score = {"event": "score", **{key: figures[key] for key in _SCORED}, **_cost(model, data)}
    plain = json.loads(to_json(score))  # nan, of a class that never occurs, becomes null
    write_text(place.log, "\n".join([json.dumps(record), *lines, json.dumps(plain)]) + "\n")
    return 0


def _cost(model: Segmenter, data: str) -> dict[str, Any]:
    """Parameters, and multiply-adds for an image of the held-out fold."""
    image, _ = open_dataset(data, "val").load(0)
    factor = resolve_data_config(model).enlargement(*image.shape[1:])
    size = (round(factor * image.shape[1]), round(factor * image.shape[2]))
    cost = complexity(model.config, size)
    return {"size": size, "params": cost.params, "multiply_adds": cost.multiply_adds}


def _watch(parent: int | None) -> Callable[[ProgressEvent], None]:
    """A progress hook that ends the run as SIGTERM does when the runner is gone: a killed runner leaves no process."""

    def watch(event: ProgressEvent) -> None:
        if parent is not None and event.phase == "train" and os.getppid() != parent:
            signal.raise_signal(signal.SIGTERM)

    return watch


def require_same(path: Path, line: str | bytes, wanted: Mapping[str, Any]) -> None:
    """Raise OtherRunError unless ``line``, the first of a log, agrees with all that is ``wanted``."""
    try:
        found = json.loads(line)
        different = sorted(key for key in wanted if _comparable(found).get(key) != _comparable(wanted)[key])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise OtherRunError(f"{path} is not a log of this runner; move it or choose another folder") from error
    if "recipe" in different:
        mine, theirs = _comparable(wanted)["recipe"], _comparable(found).get("recipe", {})
        fields = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        different = [*(key for key in different if key != "recipe"), *(f"recipe.{name}" for name in fields)]
    if different:
        raise OtherRunError(
            f"{path} was made with another {', '.join(different)}; it stays as it is, move it or choose another folder"
        )


def _comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON has it, with a recipe that has all of its fields and none that changes no number."""
    plain: dict[str, Any] = json.loads(json.dumps(record))
    # A field that did not exist when the log was made had no effect, as it has by default; but for the samplers' rate.
    recipe = {**Recipe(model=plain["recipe"]["model"]).to_plain(), "sampler_lr_mult": 1.0, **plain["recipe"]}
    return {**plain, "recipe": {name: value for name, value in recipe.items() if name not in _FREE}}
