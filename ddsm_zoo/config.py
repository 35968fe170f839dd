"""Configuration of a model as frozen dataclasses. ``ModelConfig`` is what ``config.json`` holds."""

from __future__ import annotations

import math
import numbers
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils.plain_data import ConfigError, printable, to_dict, wrong_type

Smoothing = Literal["plain", "all", "none"]
Norm = Literal["batch", "group"]

# Reading 1: version 0.1.0. Reading 2: sampler input scaled, e_ph added before upsampling, value of K downsampled
READING = 2

DEFAULT_THRESHOLD = 0.5  # of models of a single class

# Options of timm's networks that a config may set. None of them can name a file, or make a network endlessly large
BACKBONE_ARGS = (
    "aa_layer",
    "act_layer",
    "always_partition",
    "attn_drop_rate",
    "bn_eps",
    "bn_momentum",
    "drop_block_rate",
    "drop_path_rate",
    "drop_rate",
    "img_size",
    "ls_init_value",
    "norm_layer",
    "output_stride",
    "pad_type",
    "pos_drop_rate",
    "proj_drop_rate",
    "stem_type",
    "strict_img_size",
    "window_size",
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class DDSMConfig:
    """Sizes of one Dynamic Dual Sampling Module (section 2 of the paper).

    Attributes:
        pixels: N of Eq. 2, the sampled positions. The square of an odd number up to 15, since the sampler starts from a
            k x k grid.
        channels: N_c of Eq. 3, the sampled channels. The square of an odd number up to 15.
        width: c of Eq. 3, a square number from 1 to 1024. Also the width of the query, key and value of Eq. 2.
        pool: ``a`` of Eq. 3, 1 to 64. Low and high are pooled to a x a for the channel affinity.
        positions: Length of the row and column tables of positional embeddings, 1 to 1024.
        reading: Version of our reading of the paper. Weights of another version would compute something else and are
            refused (docs/method.md).

    Raises:
        ConfigError: A value is out of range.
    """

    pixels: int = 9
    channels: int = 9
    width: int = 64
    pool: int = 16
    positions: int = 32
    reading: int = READING

    def __post_init__(self) -> None:
        if self.reading != READING:
            raise ConfigError.of(
                "ddsm.reading",
                self.reading,
                f"{READING}: the weights are from ddsm-zoo 0.1.0, which built the module differently (CHANGELOG.md)",
                "train them again",
            )
        for name in ("pixels", "channels"):
            value = getattr(self, name)
            side = math.isqrt(max(value, 0))
            if side * side != value or side % 2 == 0 or side > 15:
                raise ConfigError.of(f"ddsm.{name}", value, "the square of an odd number up to 15: 1, 9, 25, ...")
        if math.isqrt(max(self.width, 0)) ** 2 != self.width or not 1 <= self.width <= 1024:
            raise ConfigError.of("ddsm.width", self.width, "a square number from 1 to 1024")
        _check_range("ddsm.pool", self.pool, 1, 64)
        _check_range("ddsm.positions", self.positions, 1, 1024)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a segmenter. Two equal configs build models with the same parameters.

    Attributes:
        decoder: Registered name of the decoder, see `register_decoder`.
        backbone: Name of a timm model.
        fusion: Registered name of the fusion module, see `register_fusion`.
        num_classes: Logits per pixel, 1 to 65536.
        in_chans: Input channels, 1 to 1024.
        width: Channels of the decoder, 8 to 4096.
        fused_stages: Stages s whose x~s the fusion module forms. UPerNet takes any of 2, 3, 4. DeepLabV3+ always forms
            x~2 alone.
        ddsm: Sizes of the DDSM modules.
        smoothing: Levels of UPerNet that keep their 3 x 3 convolution. "plain" means those without a fusion module.
        stride: Finest stride of the logits: 4, the decoders' own, or 2, which adds a residual from the backbone's
            features at stride 2. It places boundaries and thin lines better, for 5 to 10 % more time.
        separable: Replace the decoder's dense 3 x 3 convolutions by depthwise-separable ones, for light backbones.
        norm: "group" replaces all batch norm by group norm, for training on batches of one or two images.
        dropout: Dropout probability, from 0 up to but not including 1.
        auxiliary: Add the FCN head on x4 that is used in training only.
        backbone_args: Options of the timm network, such as ``{"drop_path_rate": 0.2}``, out of `BACKBONE_ARGS`.

    Raises:
        ConfigError: A value is out of range or malformed.
    """

    decoder: str
    backbone: str
    fusion: str = "none"
    num_classes: int = 19
    in_chans: int = 3
    width: int = 256
    fused_stages: tuple[int, ...] = (2, 3, 4)
    ddsm: DDSMConfig = field(default_factory=DDSMConfig)
    smoothing: Smoothing = "plain"
    stride: int = 4
    separable: bool = False
    norm: Norm = "batch"
    dropout: float = 0.1
    auxiliary: bool = False
    backbone_args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone_args", _backbone_args(self.backbone_args))
        for name in ("decoder", "fusion"):
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,79}", getattr(self, name)):
                raise ConfigError.of(
                    name, getattr(self, name), "a name such as uper or ddsm", shown=repr(getattr(self, name)[:80])
                )
        for name, choices in (("smoothing", Smoothing), ("norm", Norm)):
            if getattr(self, name) not in typing.get_args(choices):
                value = getattr(self, name)
                raise ConfigError.of(name, value, f"one of {', '.join(typing.get_args(choices))}", shown=repr(value))
        if self.num_classes == 0:
            hint = "forward_features gives features without a classifier"
            raise ConfigError.of("num_classes", 0, "1 to 65536", hint)
        _check_range("num_classes", self.num_classes, 1, 65536)
        _check_range("in_chans", self.in_chans, 1, 1024)
        _check_range("width", self.width, 8, 4096)
        if self.stride not in (2, 4):
            raise ConfigError.of("stride", self.stride, "4 or 2")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError.of("dropout", self.dropout, "a number from 0 up to 1")
        # timm would download from the repository in a name such as hf-hub:org/model
        if not re.fullmatch(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_-]{1,100})?", self.backbone):
            raise ConfigError.of("backbone", self.backbone, "the name of a timm model", shown=repr(self.backbone[:80]))
        if self.decoder == "deeplabv3plus" and self.smoothing != "plain":
            raise ConfigError.of("smoothing", self.smoothing, "plain: only UPerNet has levels to smooth")
        if len(set(self.fused_stages)) != len(self.fused_stages) or not set(self.fused_stages) <= {2, 3, 4}:
            raise ConfigError.of("fused_stages", self.fused_stages, "different stages out of 2, 3 and 4")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing of an image for the network: scale to 0..1, subtract ``mean``, divide by ``std``.

    Attributes:
        mean: Mean of each channel, on the scale 0..1.
        std: Standard deviation of each channel, on the same scale, above 0.
        size: Resolution (H, W) in pixels at which the weights were trained and evaluated, None if there is none. Images
            are resized to it only on request.
        min_size: Size (H, W) in pixels. Images with fewer pixels than H x W are enlarged to that many and keep their
            aspect ratio. Weights that set it segment small objects better on enlarged images.

    Raises:
        ConfigError: The lengths of ``mean`` and ``std`` differ, or a value is out of range.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: tuple[int, int] | None = None
    min_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ConfigError(
                f"mean has {len(self.mean)} and std {len(self.std)} values, expected one of each for every channel",
                name="mean",
                got=(len(self.mean), len(self.std)),
            )
        if min(self.std) <= 0:
            raise ConfigError.of("std", self.std, "numbers above 0")
        for name in ("size", "min_size"):
            size = getattr(self, name)
            if size is not None and min(size) < 1:
                raise ConfigError.of(name, size, "a height and a width of at least 1")

    def enlargement(self, height: int, width: int) -> float:
        """Return the factor, at least 1, by which an image of ``height`` x ``width`` pixels is enlarged."""
        if self.min_size is None:
            return 1.0
        return max(1.0, math.sqrt(math.prod(self.min_size) / (height * width)))


@dataclass(frozen=True, kw_only=True)
class WeightsSpec:
    """One published set of weights: location, hash, training data and scores.

    Attributes:
        uri: Location of the weights, see `hub.download.fetch`.
        dataset: Name of the data set they were trained on.
        labels: Classes that the weights predict.
        preprocess: Preprocessing that the weights expect.
        sha256: SHA-256 of the weights file, 64 hexadecimal digits.
        license: License of the weights.
        recipe: Training recipe.
        start: Weights that the training started from.
        changes: Fields of the recipe that the training changed, and ``overrides`` of the architecture.
        metrics: Scores measured on the file itself, in percent, keyed by metric and protocol.
        published: Scores that the paper reports, in the same form.
        taps_on_map: Share of the taps that read the map on images of the data set, keyed by sampler. 0 to 1, near 0 for
            a sampler that does nothing.
        domain: Kind of images that the weights are for, in words: street scenes.
        familiar: Mean confidence of a prediction, 0 to 1, below which an image looks unlike these. None if unmeasured.
        threshold: For a single class, the probability above which a pixel is the class, between 0 and 1. None stands
            for 0.5.

    Raises:
        ConfigError: ``threshold`` is out of range, or given for several classes.
    """

    uri: str
    dataset: str
    labels: LabelSpace
    preprocess: Preprocess = field(default_factory=Preprocess)
    sha256: str | None = None
    license: str = "unknown"
    recipe: str | None = None
    start: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    taps_on_map: Mapping[str, float] = field(default_factory=dict)
    domain: str | None = None
    familiar: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_threshold(self.threshold, len(self.labels))

    def without_scores(self) -> WeightsSpec:
        """Return the same weights without scores and threshold, which belong to their own classes and input."""
        return replace(self, metrics={}, published={}, taps_on_map={}, threshold=None, familiar=None)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of a model's weights, its preprocessing and its classes.

    ``weights`` leaves out scores that no longer hold because the input or the classes changed.

    Attributes:
        name: Name of the model.
        preprocess: Preprocessing of its input.
        labels: Meaning of its classes, None if unknown.
        weights: Task weights that it was loaded from, None for a model without.
        fresh: Tensors of a loaded model that the weights did not fill.
        reused: Classes given by name whose classifier rows were kept, with their names in the weights.
        reinitialized: Classes given by name whose classifier rows are freshly initialized.
        converted: Report on the conversion of another library's tensors (`zoo.convert`).
    """

    name: str
    preprocess: Preprocess = field(default_factory=Preprocess)
    labels: LabelSpace | None = None
    weights: WeightsSpec | None = None
    fresh: tuple[str, ...] = ()
    reused: Mapping[str, str] = field(default_factory=dict)
    reinitialized: tuple[str, ...] = ()
    converted: Mapping[str, Any] | None = None

    @property
    def scored(self) -> bool:
        """Return True if the scores of the weights hold for this model: its classes are those of the weights."""
        return self.weights is not None and self.labels is not None and self.labels.names == self.weights.labels.names

    @property
    def threshold(self) -> float:
        """Probability above which a pixel is the class, for a model of a single class."""
        recorded = None if self.weights is None else self.weights.threshold
        return DEFAULT_THRESHOLD if recorded is None else recorded

    def without_classes(self, fresh: tuple[str, ...]) -> Provenance:
        """Return the record of the same model after random ones replaced its classifier's tensors, named ``fresh``."""
        weights = None if self.weights is None else self.weights.without_scores()
        fresh = tuple(dict.fromkeys((*self.fresh, *fresh)))
        return replace(self, labels=None, weights=weights, fresh=fresh, reused={}, reinitialized=())

    def to_cfg(self) -> dict[str, Any]:
        """Convert to plain data with timm's keys where timm has them. Unknown facts have no key."""
        known = {} if self.weights is None else to_dict(self.weights)
        for key in (
            "preprocess",
            "labels",
            *(() if self.scored else ("metrics", "published", "taps_on_map", "familiar")),
        ):
            known.pop(key, None)
        known = {key: value for key, value in known.items() if value is not None}
        if self.labels is not None:
            known["labels"] = to_dict(self.labels)
        if self.reused or self.reinitialized:
            known |= {"reused": dict(self.reused), "reinitialized": list(self.reinitialized)}
        if self.weights is not None:
            known["fresh"] = list(self.fresh)
        if self.converted is not None:
            known["converted"] = dict(self.converted)
        return {"name": self.name, **known, **to_dict(self.preprocess)}


def check_threshold(threshold: Any, num_classes: int) -> None:
    """Raise ConfigError unless ``threshold`` lies between 0 and 1 and there is a single class."""
    if num_classes != 1:
        raise ConfigError(
            f"got the threshold {threshold} for {num_classes} classes, expected none: the class of the highest score "
            "wins; only a model of a single class has a threshold",
            name="threshold",
            got=threshold,
        )
    if not (isinstance(threshold, numbers.Real) and 0 < float(threshold) < 1):
        raise ConfigError.of("threshold", threshold, "a probability above 0 and below 1 such as 0.5")


def _backbone_args(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a timm network, and sort them, so that equal options are equal data."""
    args = {name: tuple(value) if isinstance(value, list) else value for name, value in sorted(given.items())}
    for name, value in args.items():
        where = f"backbone_args.{printable(name)}"
        if name not in BACKBONE_ARGS:
            expected = f"one of {', '.join(BACKBONE_ARGS)}"
            raise ConfigError(f"{where} cannot be set, expected {expected}", name=where, got=value, expected=expected)
        words = isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,79}", value)
        numbers = value if isinstance(value, tuple) and 1 <= len(value) <= 4 else (value,)
        if not words and not all(isinstance(item, (int, float)) and 0 <= item <= 65536 for item in numbers):
            expected = "a number from 0 to 65536 or up to 4 of them, true, false or a name"
            raise wrong_type(where, value, expected)
    return args


def _check_range(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
        raise ConfigError.of(name, value, f"{low} to {high}")
