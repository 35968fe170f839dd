"""A recipe and the name of a data set to a trained model in a folder."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddsm_zoo import hub
from ddsm_zoo.config import ConfigError, DDSMConfig, ModelConfig, WeightsSpec
from ddsm_zoo.data.check import require_sound
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.transforms import EvalTransform, TrainTransform
from ddsm_zoo.engine.recipe import Recipe
from ddsm_zoo.engine.train import ProgressEvent, train
from ddsm_zoo.factory import create_model, describe_weights, resolve_data_config, save_pretrained
from ddsm_zoo.fitting import load_weights
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter
from ddsm_zoo.tensors import read_tensors


def run_recipe(
    recipe: Recipe,
    data: str,
    out_dir: str | Path,
    *,
    pretrained: bool | None = None,
    resume: bool = False,
    source: str | None = None,
    progress: Callable[[ProgressEvent], None] | None = None,
) -> dict[str, Any]:
    """Train the recipe's model on the splits train and val of ``data``, which decides the number of classes.

    ``pretrained`` starts from the model's task weights, or from random numbers for False; None starts from the
    ImageNet weights of its backbone. ``source`` is recorded as the recipe's name.

    Returns the summary of `engine.train.train`. However the run ends, ``out_dir/best`` is then a saved model with the
    data's labels, if a validation was reached. Raises what `train`, `create_model` and `open_dataset` raise, and
    DatasetError, before ``out_dir`` is touched, for data in which the quick check of `data.check` finds an error.
    """
    out_dir = Path(out_dir)
    labels = open_dataset(data, "train").labels
    resumed = resume and (out_dir / "last" / "state.pt").exists()
    model = _create_trainee(recipe, labels, pretrained, resumed)
    _check(recipe, data, progress)
    preprocess = resolve_data_config(model)
    transform = TrainTransform(
        preprocess, recipe.crop_size, labels.ignore_index, recipe.scale, recipe.flip, recipe.jitter
    )
    train_set = open_dataset(data, "train", transform, recipe.seed)
    val_set = open_dataset(data, "val", EvalTransform(preprocess))
    best = out_dir / "best" / hub.WEIGHTS_FILE
    begun = False

    def begin(event: ProgressEvent) -> None:
        nonlocal begun
        if not begun:  # until then the run may be refused, and what an earlier one left must stay as it is
            begun = True
            # It holds the hash of weights that training may replace; a kill must not leave the two side by side.
            (best.parent / hub.CONFIG_FILE).unlink(missing_ok=True)
        if progress:
            progress(event)

    summary: dict[str, Any] = {}
    try:
        summary = train(
            model,
            recipe,
            train_set,
            val_set,
            out_dir,
            ignore_index=labels.ignore_index,
            resume=resume,
            progress=begin,
        )
    finally:
        if begun and best.exists():
            _publish(model, best, labels, data, source, summary)
    return summary


def _create_trainee(recipe: Recipe, labels: LabelSpace, pretrained: bool | None, resumed: bool) -> Segmenter:
    """The recipe's model, with initial weights unless those of the resumed run will replace them."""
    _check_overrides(recipe.overrides)
    return create_model(
        recipe.model,
        pretrained=bool(pretrained) and not resumed,
        labels=labels,
        pretrained_backbone=True if pretrained is None and not resumed else None,
        **recipe.overrides,
    )


def _check(recipe: Recipe, data: str, progress: Callable[[ProgressEvent], None] | None) -> None:
    event = ProgressEvent(phase="check", epoch=0, epochs=recipe.epochs, done=0, total=0, loss=math.nan, miou=math.nan)

    def show(done: int, total: int) -> None:
        if progress:
            progress(dataclasses.replace(event, done=done, total=total))

    require_sound(data, ("train", "val"), show)


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    """Only what changes the architecture, and not what the data decides."""
    fields = {field.name for config in (ModelConfig, DDSMConfig) for field in dataclasses.fields(config)}
    allowed = sorted(fields - {"num_classes", "in_chans"})
    for name in overrides:
        if name not in allowed:
            nearest = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected some of {', '.join(allowed)}"
            raise ConfigError(f"the recipe overrides {name!r}, which a recipe cannot; {hint}")


def _publish(
    model: Segmenter, weights: Path, labels: LabelSpace, data: str, source: str | None, summary: dict[str, Any]
) -> None:
    """Make the folder of the best weights a saved model that knows its labels, input and score."""
    kind, _, root = data.partition(":")
    load_weights(model, read_tensors(weights), str(weights))
    spec = WeightsSpec(
        uri=f"file:{weights.name}",
        dataset=Path(root).resolve().name if kind == "folder" else kind,
        labels=labels,
        preprocess=dataclasses.replace(resolve_data_config(model), size=None),
        license="unknown",  # it follows the data's, which only the user knows
        recipe=source,
        metrics={"miou (val)": 100 * summary["best_miou"]} if summary else {},
    )
    describe_weights(model, spec)
    save_pretrained(model, weights.parent)
