"""Recipes: a training run but for its data, as one TOML file. The package has some, which are found by name."""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddsm_zoo.config import ConfigError, from_dict, to_dict
from ddsm_zoo.utils.files import OutputError, write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "recipes"  # the package's own
SUFFIX = ".toml"

_COUNTS = ("epochs", "validate_every", "gradient_accumulation")
_NOT_NEGATIVE = (
    "batch_size", "images_per_epoch", "backbone_lr", "sampler_lr_mult", "weight_decay", "power", "warmup_steps", "dice",
    "lovasz", "auxiliary_weight", "clip_norm", "seed", "workers", "jitter", "patience", "save_every",
)  # fmt: skip
_BELOW_ONE = ("momentum", "label_smoothing", "ema_decay", "ohem")
_SHARES = ("holdout", "ohem_keep", "stage_decay")


class UnknownRecipeError(LookupError):
    """A name that no recipe of the package has; the message names the nearest ones."""


def list_recipes() -> list[str]:
    """Sorted names of the recipes in the package. ``Recipe.load(name).about`` tells what each is for."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def find_recipe(recipe: str | os.PathLike[str]) -> Path:
    """Find the file of a recipe.

    Args:
        recipe: A name of `list_recipes`, or a path. A text is a path if it has a separator or ends in ``.toml``.

    Raises:
        UnknownRecipeError: the package has no recipe of this name.
        FileNotFoundError: there is no file at this path.
    """
    path, known = Path(recipe), list_recipes()
    if not isinstance(recipe, str) or {"/", "\\"} & set(recipe) or recipe.lower().endswith(SUFFIX):
        if path.is_file():
            return path
        hint = f"the package has the recipe {path.stem}" if path.stem in known else "`ddsm-zoo recipes` has all names"
        raise FileNotFoundError(f"no recipe at {path}, expected a TOML file or a name; {hint}")
    if recipe not in known:
        nearest = difflib.get_close_matches(recipe[:80], known, n=3)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise UnknownRecipeError(
            f"unknown recipe {recipe[:80]!r}; {hint}`ddsm-zoo recipes` has all names, and a path ends in {SUFFIX}"
        )
    return FOLDER / f"{recipe}{SUFFIX}"


def copy_recipe(recipe: str, target: str | os.PathLike[str] | None = None) -> Path:
    """Write a recipe to a new file, for editing. The command in its comments then names that file.

    Args:
        recipe: A name of `list_recipes`.
        target: A path that ends in ``.toml``. Unless given, the recipe's name in the current folder.

    Returns:
        The path of the new file.

    Raises:
        UnknownRecipeError: the package has no recipe of this name.
        ValueError: ``target`` ends in something else.
        OutputError: ``target`` exists or cannot be written.
    """
    source = find_recipe(recipe)
    target = Path(source.name if target is None else target)
    if target.suffix != SUFFIX:
        raise ValueError(f"the copy is to be called {target}, expected a name that ends in {SUFFIX}")
    if target.exists():
        raise OutputError(errno.EEXIST, "it exists already, choose another file", str(target))
    option = f"--recipe {shlex.quote(str(target))}"
    text = source.read_text(encoding="utf-8")
    write_text(target, re.sub(rf"--recipe {source.stem}(?!\w)", lambda _: option, text))
    return target


def parse_change(text: str) -> tuple[str, Any]:
    """The field and the value of ``FIELD=VALUE``, a line of TOML; a value that is none is a word without its quotes.

    Raises ConfigError where there is no field or no value.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if not name.isidentifier() or not value:
        raise ConfigError(f"got the change {text[:60]!r}, expected FIELD=VALUE such as sampling=balanced")
    try:
        return name, tomllib.loads(f"{name} = {value}")[name]
    except ValueError:
        return name, value


@dataclass(frozen=True, kw_only=True)
class About:
    """Notes of a recipe for its readers, as ``ddsm-zoo recipes`` lists them. No training depends on them."""

    purpose: str = ""  # in one line
    hardware: str = ""
    duration: str = ""
    score: str = ""  # the score to expect, on which split, and whether it is measured or published


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run but for its data. Optimizer, schedule, scale range, flip and crop default to the paper's.

    Model: ``model`` is a name of the zoo, ``overrides`` (a table) changes fields of its config.

    Data: ``batch_size`` images per forward pass over all processes (0: as many as fit, see `batch_size`), cut to
    ``crop_size`` (H, W) after a resize by a factor from ``scale``, mirrored with probability ``flip``, colours varied
    by ``jitter``; ``workers`` loading processes for each training process. An epoch shows as many images as there are,
    or ``images_per_epoch`` if that is fewer (0: never), one as often as another or, with ``sampling`` "balanced", by
    the rarity of its classes. ``holdout`` is the share of the training images that validates where the data has no
    split for that. ``min_size`` (H, W) enlarges smaller images to as many pixels, before anything else and wherever the
    trained weights are used, see `config.Preprocess`.

    Optimization: ``lr`` for everything, ``backbone_lr`` for the backbone where it differs, both times ``stage_decay``
    for each stage after a weight's own, the last being decoder and classifier; ``sampler_lr_mult`` times the rate for
    the convolutions that predict offsets and modulations, as in DCNv2; ``momentum`` is for SGD only. The rate
    falls as (1 - step / steps) ** ``power`` after a linear rise over ``warmup_steps`` optimizer steps. One optimizer
    step sees ``gradient_accumulation`` batches, with gradients clipped to ``clip_norm`` (0: not clipped).

    Not trained: the first ``frozen_stages`` stages of the backbone, of which the stem is the first ("all": the whole
    backbone), and by ``frozen_norms`` the batch normalisations of the backbone, or all: neither weights nor statistics.

    Loss: cross-entropy with ``label_smoothing``, weighted by ``class_weights`` (one for each class, or "auto": by
    median frequency), with ``ohem`` above 0 over the pixels whose class has at most that probability, but at least the
    share ``ohem_keep``; plus ``dice`` times soft Dice, plus ``lovasz`` times Lovasz-softmax; the auxiliary head, where
    the model has one, adds ``auxiliary_weight`` times the same on its own logits.

    ``ema_decay`` above 0 averages the weights over the steps and makes the average what is validated and
    published. Validation comes every ``validate_every`` epochs and after the last; ``patience`` above 0 ends the run
    after so many validations without a higher mIoU.

    ``about`` is for readers: it is in no log, and two recipes that differ in it alone are equal.

    The state to resume from is saved after each epoch; with ``save_every`` above 0 also after every so many optimizer
    steps and before each validation.

    Raises ConfigError, naming the field, for a value outside its range.
    """

    model: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    epochs: int = 100
    batch_size: int = 8
    crop_size: tuple[int, int] = (1024, 1024)
    scale: tuple[float, float] = (0.75, 2.0)
    flip: float = 0.5
    jitter: float = 0.0
    min_size: tuple[int, int] | None = None
    workers: int = 2
    images_per_epoch: int = 0
    sampling: Literal["uniform", "balanced"] = "uniform"
    holdout: float = 0.2

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    backbone_lr: float | None = None
    sampler_lr_mult: float = 0.1
    stage_decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    warmup_steps: int = 0
    gradient_accumulation: int = 1
    clip_norm: float = 0.0

    frozen_stages: int | Literal["all"] = 0
    frozen_norms: Literal["none", "backbone", "all"] = "none"

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | Literal["auto"] | None = None
    ohem: float = 0.0
    ohem_keep: float = 1 / 16
    dice: float = 0.0
    lovasz: float = 0.0
    auxiliary_weight: float = 0.4

    ema_decay: float = 0.0
    validate_every: int = 1
    patience: int = 0
    save_every: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    seed: int = 0

    about: About = field(default_factory=About, compare=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty, expected the name of a model")
        for name in _COUNTS:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            self._require(name, value is None or 0 <= value < math.inf, "0 or more")
        for name in _BELOW_ONE:
            self._require(name, 0 <= getattr(self, name) < 1, "from 0 up to 1")
        for name in _SHARES:
            self._require(name, 0 < getattr(self, name) <= 1, "more than 0 and at most 1")
        self._require("holdout", self.holdout < 1, "less than 1, some images must remain to train on")
        self._require("frozen_stages", self.frozen_stages == "all" or self.frozen_stages >= 0, "0 or more, or all")
        if isinstance(self.class_weights, tuple):
            usable = all(0 <= weight < math.inf for weight in self.class_weights) and any(self.class_weights)
            self._require("class_weights", usable, "numbers of 0 or more, not all of them 0")
        self._require("lr", 0 < self.lr < math.inf, "more than 0")
        self._require("flip", 0 <= self.flip <= 1, "a probability, 0 to 1")
        self._require("crop_size", min(self.crop_size) >= 1, "height and width in pixels, each at least 1")
        if self.min_size is not None:
            self._require("min_size", min(self.min_size) >= 1, "height and width in pixels, each at least 1")
        self._require("scale", 0 < self.scale[0] <= self.scale[1] < math.inf, "two factors above 0, the smaller first")

    @classmethod
    def load(cls, recipe: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe.

        Args:
            recipe: A name of `list_recipes` such as ``finetune``, or a path such as ``./mine.toml``.
            changes: Other values for some of its fields.

        Raises:
            UnknownRecipeError: the package has no recipe of this name.
            FileNotFoundError: there is no file at this path.
            ConfigError: the file is not a recipe; the message names the field.
        """
        path = find_recipe(recipe)
        try:
            data = tomllib.loads(path.read_bytes().decode("utf-8"))
        except ValueError as error:  # not TOML, or not even UTF-8
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        return from_dict(cls, {**data, **(changes or {})}, where=str(path))

    def to_plain(self) -> dict[str, Any]:
        """The fields but ``about`` as JSON holds them, for logs and for comparing with an earlier run."""
        plain: dict[str, Any] = json.loads(json.dumps(to_dict(self), default=str))
        del plain["about"]
        return plain

    def _require(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ConfigError(f"{name} is {getattr(self, name)}, expected {expected}")
