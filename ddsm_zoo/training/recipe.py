"""Recipes: the settings of a training run, without the data, as one TOML file. The package has some by name."""

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
from typing import Any, ClassVar, Literal

from ddsm_zoo.config import DEFAULT_THRESHOLD, check_threshold
from ddsm_zoo.errors import ArgumentError, MissingFileError, UserError
from ddsm_zoo.utils.files import OutputError, write_text
from ddsm_zoo.utils.plain_data import ConfigError, from_dict, to_dict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "recipes"  # recipes of the package
SUFFIX = ".toml"

_COUNTS = ("epochs", "validate_every", "gradient_accumulation")
_NOT_NEGATIVE = (
    "batch_size", "images_per_epoch", "backbone_lr", "sampler_lr_mult", "weight_decay", "power", "warmup_steps", "dice",
    "lovasz", "auxiliary_weight", "clip_norm", "seed", "workers", "jitter", "patience", "save_every",
)  # fmt: skip
_BELOW_ONE = ("momentum", "label_smoothing", "ema_decay", "ohem")
_SHARES = ("holdout", "ohem_keep", "stage_decay")


class UnknownRecipeError(UserError, LookupError):
    """Raised for a recipe name that the package does not have. The message suggests the nearest names."""

    kind = "unknown-recipe"


def list_recipes() -> list[str]:
    """List the recipes in the package. ``Recipe.load(name).about`` says what each is for.

    Returns:
        Sorted names.
    """
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def find_recipe(recipe: str | os.PathLike[str]) -> Path:
    """Find the file of a recipe.

    Args:
        recipe: A name of `list_recipes`, or a path. A text is a path if it has a separator or ends in ``.toml``.

    Raises:
        UnknownRecipeError: The package has no recipe of this name.
        FileNotFoundError: There is no file at this path.
    """
    path, known = Path(recipe), list_recipes()
    if not isinstance(recipe, str) or {"/", "\\"} & set(recipe) or recipe.lower().endswith(SUFFIX):
        if path.is_file():
            return path
        hint = f"the package has the recipe {path.stem}" if path.stem in known else "`ddsm-zoo recipes` has all names"
        raise MissingFileError(f"no recipe at {path}, expected a TOML file or a name; {hint}", path=path)
    if recipe not in known:
        nearest = difflib.get_close_matches(recipe[:80], known, n=3)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise UnknownRecipeError(
            f"unknown recipe {recipe[:80]!r}; {hint}`ddsm-zoo recipes` has all names, and a path ends in {SUFFIX}",
            name=recipe,
        )
    return FOLDER / f"{recipe}{SUFFIX}"


def copy_recipe(recipe: str, target: str | os.PathLike[str] | None = None) -> Path:
    """Copy a recipe to a new file for editing. The command in its comments then names that file.

    Args:
        recipe: A name of `list_recipes`.
        target: A path that ends in ``.toml``. Unless given, the recipe's name in the current folder.

    Returns:
        The path of the new file.

    Raises:
        UnknownRecipeError: The package has no recipe of this name.
        ValueError: ``target`` does not end in ``.toml``.
        OutputError: ``target`` exists or cannot be written.
    """
    source = find_recipe(recipe)
    target = Path(source.name if target is None else target)
    if target.suffix != SUFFIX:
        raise ArgumentError(
            f"the name of the copy is {target}, expected one that ends in {SUFFIX}",
            kind="file-suffix",
            path=target,
            expected=SUFFIX,
        )
    if target.exists():
        raise OutputError(errno.EEXIST, "it exists already, choose another file", str(target))
    option = f"--recipe {shlex.quote(str(target))}"
    text = source.read_text(encoding="utf-8")
    write_text(target, re.sub(rf"--recipe {source.stem}(?!\w)", lambda _: option, text))
    return target


def parse_change(text: str) -> tuple[str, Any]:
    """Parse ``FIELD=VALUE``, a line of TOML, into field and value. A value that is not TOML is an unquoted string.

    Raises ConfigError if the field or the value is missing.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if not name.isidentifier() or not value:
        expected = "FIELD=VALUE such as sampling=balanced"
        raise ConfigError(f"got the change {text[:60]!r}, expected {expected}", got=text, expected=expected)
    try:
        return name, tomllib.loads(f"{name} = {value}")[name]
    except ValueError:
        return name, value


@dataclass(frozen=True, kw_only=True)
class About:
    """Notes for readers of a recipe, listed by ``ddsm-zoo recipes``. They do not affect training."""

    purpose: str = ""  # one line
    hardware: str = ""  # machine that the duration refers to
    duration: str = ""  # length of the run on it
    score: str = ""  # expected score, its split, and whether it is measured or published


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run, without the data.

    Optimizer, schedule, scale range, flip and crop default to the paper's.

    The learning rate is (1 - step / steps) ** ``power`` times ``lr``, after a linear warmup. One optimizer step sees
    ``gradient_accumulation`` batches. ``backbone_lr`` and ``lr`` are both multiplied by ``stage_decay`` for each stage
    after a weight's own. The last stage is decoder and classifier.

    The loss is cross-entropy, plus ``dice`` times soft Dice, plus ``lovasz`` times Lovasz-softmax. If the model has an
    auxiliary head, ``auxiliary_weight`` times the same loss on its logits is added. With ``ohem`` above 0, the
    cross-entropy counts only pixels whose class has at most that probability, but at least the share ``ohem_keep`` of
    the pixels. For a single class the cross-entropy is the binary one of a sigmoid. ``class_weights`` are then
    two, for background and class, or one for the class, and the other two losses are those of the class. A pixel is the
    class if its probability exceeds ``threshold``.

    ``min_size`` enlarges smaller images before any other step, and wherever the trained weights are used, see
    `config.Preprocess`. A frozen batch norm keeps its weights and its statistics. With ``ema_decay`` above 0, the
    averaged weights are the ones that are validated and published; "auto" averages over the last 5 % of the run's
    steps, and not at all if those are fewer than 2. The last epoch is always validated. The state to resume from is
    saved after each epoch. With ``save_every`` above 0 it is also saved within an epoch and before each validation.

    Raises:
        ConfigError: A value is out of range. The message names the field.
    """

    model: str  # zoo name or address such as local-dir:FOLDER
    overrides: Mapping[str, Any] = field(default_factory=dict)  # changed config fields of the model, as a table

    epochs: int = 100  # passes over the training images, of images_per_epoch each if set
    batch_size: int = 8  # images per forward pass, over all processes; 0: as many as fit into memory
    crop_size: tuple[int, int] = (1024, 1024)  # (H, W) in pixels, cut after the random resize
    scale: tuple[float, float] = (0.75, 2.0)  # range of the random resize factor
    flip: float = 0.5  # probability of mirroring an image, 0 to 1
    jitter: float = 0.0  # strength of the color jitter, 0: none
    blur: float = 0.0  # probability of a slight Gaussian blur, 0 to 1
    class_crops: float = 0.0  # share of crops that show a pixel of a random class of the image, 0 to 1
    min_size: tuple[int, int] | None = None  # (H, W) in pixels: smaller images are enlarged to that area; None: not
    workers: int = 2  # data loading processes per training process
    images_per_epoch: int = 0  # maximum number of images per epoch, 0: all
    sampling: Literal["uniform", "balanced"] = "uniform"  # balanced: images of rare classes more often
    holdout: float = 0.2  # share of the training images for validation if the data has no split for it

    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd with momentum, as in the paper, or adamw
    lr: float = 0.01  # peak learning rate of everything but the backbone
    backbone_lr: float | None = None  # peak learning rate of the backbone, None: lr
    sampler_lr_mult: float = 0.1  # rate factor for convolutions that predict offsets and modulations, as in DCNv2
    stage_decay: float = 1.0  # rate factor for each stage after a weight's own
    momentum: float = 0.9  # of sgd, 0 up to 1; adamw ignores it
    weight_decay: float = 5e-4  # decay of all parameters; adamw: of convolution and linear weights only
    power: float = 0.9  # exponent of the poly learning rate decay
    warmup_steps: float = 0  # optimizer steps of linear warmup; below 1: share of the run's steps
    gradient_accumulation: int = 1  # batches per optimizer step
    clip_norm: float = 0.0  # maximum gradient norm, 0: no clipping

    frozen_stages: int | Literal["all"] = 0  # number of frozen backbone stages, counted from the stem
    # Batch norms to freeze, weights and statistics; auto: those that start with trained statistics
    frozen_norms: Literal["none", "backbone", "all", "auto"] = "none"

    threshold: float | Literal["auto"] = DEFAULT_THRESHOLD  # probability of a single class; auto: best on val

    label_smoothing: float = 0.0  # label smoothing of the cross-entropy, 0 up to 1
    class_weights: tuple[float, ...] | Literal["auto"] | None = None  # one per class; auto: by median frequency
    ohem: float = 0.0  # probability up to which a pixel is hard, 0: all pixels count
    ohem_keep: float = 1 / 16  # minimum share of pixels that ohem keeps
    dice: float = 0.0  # weight of the soft Dice loss
    lovasz: float = 0.0  # weight of the Lovasz-softmax loss
    auxiliary_weight: float = 0.4  # weight of the auxiliary head's loss

    ema_decay: float | Literal["auto"] = 0.0  # decay per step of the averaged weights, 0: no averaging; auto: see above
    validate_every: int = 1  # epochs between validations
    patience: int = 0  # stop after this many validations without a higher mIoU, 0: never
    save_every: int = 0  # optimizer steps between saved states, 0: once per epoch
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"  # mixed precision; auto: bf16 if it is faster here
    channels_last: bool = True  # channels-last memory layout, faster for convolutions
    seed: int = 0  # random seed of weights, batches and augmentation

    about: About = field(default_factory=About, compare=False)  # for readers: not logged, ignored by ==

    # Names of other libraries, for the suggestions of errors
    SYNONYMS: ClassVar[Mapping[str, str]] = {
        "learning_rate": "lr",
        "lr0": "lr",
        "batch": "batch_size",
        "bs": "batch_size",
        "num_epochs": "epochs",
        "max_epochs": "epochs",
        "image_size": "crop_size",
        "img_size": "crop_size",
        "imgsz": "crop_size",
        "num_workers": "workers",
        "early_stopping": "patience",
        "warmup": "warmup_steps",
        "wd": "weight_decay",
        "amp": "precision",
        "accumulate": "gradient_accumulation",
        "freeze": "frozen_stages",
        "backbone": "overrides",
    }

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty, expected the name of a model", name="model", got="")
        for name in _COUNTS:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            self._require(name, value is None or 0 <= value < math.inf, "0 or more")
        for name in _BELOW_ONE:
            value = getattr(self, name)
            self._require(name, value == "auto" or 0 <= value < 1, "from 0 up to 1")
        for name in _SHARES:
            self._require(name, 0 < getattr(self, name) <= 1, "more than 0 and at most 1")
        self._require("holdout", self.holdout < 1, "less than 1, some images must remain to train on")
        self._require("frozen_stages", self.frozen_stages == "all" or self.frozen_stages >= 0, "0 or more, or all")
        if isinstance(self.class_weights, tuple):
            usable = all(0 <= weight < math.inf for weight in self.class_weights) and any(self.class_weights)
            self._require("class_weights", usable, "numbers of 0 or more, not all of them 0")
        if self.threshold != "auto":
            check_threshold(self.threshold, num_classes=1)
        self._require("lr", 0 < self.lr < math.inf, "more than 0")
        for name in ("flip", "blur", "class_crops"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a probability, 0 to 1")
        self._require("crop_size", min(self.crop_size) >= 1, "height and width in pixels, each at least 1")
        if self.min_size is not None:
            self._require("min_size", min(self.min_size) >= 1, "height and width in pixels, each at least 1")
        self._require("scale", 0 < self.scale[0] <= self.scale[1] < math.inf, "two factors above 0, the smaller first")

    @classmethod
    def load(cls, recipe: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe.

        Args:
            recipe: A name of `list_recipes` such as ``finetune``, or a path such as ``./mine.toml``.
            changes: New values for some of its fields.

        Returns:
            The recipe with these changes.

        Raises:
            UnknownRecipeError: The package has no recipe of this name.
            FileNotFoundError: There is no file at this path.
            ConfigError: The file is not a recipe. The message names the field.

        Examples:
            >>> Recipe.load("finetune", {"epochs": 5}).epochs
            5
        """
        path = find_recipe(recipe)
        try:
            data = tomllib.loads(path.read_bytes().decode("utf-8"))
        except ValueError as error:  # not TOML, or not even UTF-8
            raise ConfigError(f"{path} is not valid TOML: {error}", kind="syntax", path=path) from error
        return from_dict(
            cls, {**data, **(changes or {})}, where=str(path if path == Path(recipe) else f"recipe {recipe}")
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the fields except ``about`` as JSON data, for logs and for comparison with an earlier run."""
        plain: dict[str, Any] = json.loads(json.dumps(to_dict(self), default=str))
        del plain["about"]
        return plain

    def _require(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ConfigError.of(name, getattr(self, name), expected)
