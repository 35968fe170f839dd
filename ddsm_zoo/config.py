"""Everything that can be chosen about a model, as frozen data. ``ModelConfig`` is what ``config.json`` holds."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from ddsm_zoo.labels import LabelSpace

Smoothing = Literal["plain", "all", "none"]
Norm = Literal["batch", "group"]

# 1: version 0.1.0. 2: the sampler's input is scaled, e_ph is added before upsampling, the value of K is downsampled
READING = 2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConfigError(ValueError):
    """A configuration that cannot be built: names the field, what it holds and what it may hold."""


@dataclass(frozen=True, kw_only=True)
class DDSMConfig:
    """Sizes of one Dynamic Dual Sampling Module (section 2 of the paper).

    ``pixels`` is N of Eq. 2 and ``channels`` is N_c of Eq. 3: both are squares of odd numbers, since the
    sampler starts from a k x k grid. ``width`` is c of Eq. 3, a square number, and also the width of the
    query, key and value of Eq. 2. ``pool`` is ``a``: low and high are pooled to a x a for the channel affinity.
    ``positions`` is the length of the row and column tables of positional embeddings. ``reading`` counts our readings
    of the paper: weights of another one would compute something else and are refused (docs/method.md).
    """

    pixels: int = 9
    channels: int = 9
    width: int = 64
    pool: int = 16
    positions: int = 32
    reading: int = READING

    def __post_init__(self) -> None:
        if self.reading != READING:
            raise ConfigError(
                f"ddsm.reading is {self.reading}, expected {READING}: the weights are from ddsm-zoo 0.1.0, which "
                "built the module differently (CHANGELOG.md); train them again"
            )
        for name in ("pixels", "channels"):
            value = getattr(self, name)
            side = math.isqrt(max(value, 0))
            if side * side != value or side % 2 == 0 or side > 15:
                raise ConfigError(
                    f"ddsm.{name} is {value}, expected the square of an odd number up to 15: 1, 9, 25, ..."
                )
        if math.isqrt(max(self.width, 0)) ** 2 != self.width or not 1 <= self.width <= 1024:
            raise ConfigError(f"ddsm.width is {self.width}, expected a square number from 1 to 1024")
        _check_range("ddsm.pool", self.pool, 1, 64)
        _check_range("ddsm.positions", self.positions, 1, 1024)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a segmenter; two equal configs build models with the same parameters.

    ``decoder`` and ``fusion`` are registered names (`register_decoder`, `register_fusion`), ``backbone`` a timm name.
    ``fused_stages`` are the stages s whose x~s is formed by the fusion module (UPerNet: any of 2, 3, 4; DeepLabV3+
    always forms x~2 alone). ``smoothing`` says which levels of UPerNet keep their 3 x 3 convolution: the plain ones,
    which have no fusion module, all of them or none. ``separable`` replaces the decoder's dense 3 x 3 convolutions by
    depthwise-separable ones, for light backbones. ``norm`` "group" has group normalisation in the place of all batch
    normalisation, for training on batches of one or two images. ``auxiliary`` adds the FCN head on x4 that is used in
    training only.
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
    separable: bool = False
    norm: Norm = "batch"
    dropout: float = 0.1
    auxiliary: bool = False

    def __post_init__(self) -> None:
        for name in ("decoder", "fusion"):
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,79}", getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)[:80]!r}, expected a name such as uper or ddsm")
        for name, choices in (("smoothing", Smoothing), ("norm", Norm)):
            if getattr(self, name) not in typing.get_args(choices):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(typing.get_args(choices))}"
                )
        _check_range("num_classes", self.num_classes, 1, 65536)
        _check_range("in_chans", self.in_chans, 1, 1024)
        _check_range("width", self.width, 8, 4096)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}, expected a number from 0 up to 1")
        # timm would follow the address in a name such as hf-hub:org/model
        if not re.fullmatch(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_-]{1,100})?", self.backbone):
            raise ConfigError(f"backbone is {self.backbone[:80]!r}, expected the name of a timm model")
        if self.decoder == "deeplabv3plus" and self.smoothing != "plain":
            raise ConfigError(f"smoothing is {self.smoothing}, expected plain: only UPerNet has levels to smooth")
        if len(set(self.fused_stages)) != len(self.fused_stages) or not set(self.fused_stages) <= {2, 3, 4}:
            raise ConfigError(f"fused_stages is {self.fused_stages}, expected different stages out of 2, 3 and 4")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the network's input: scale to 0..1, subtract ``mean``, divide by ``std``.

    ``size`` (H, W) is the resolution the weights were trained and measured at, None where there is none; images
    are not resized to it unless asked. Images of fewer pixels than ``min_size`` (H, W) has are enlarged to as many, in
    their own shape: models whose weights say so see small things better.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: tuple[int, int] | None = None
    min_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ConfigError(
                f"mean has {len(self.mean)} and std {len(self.std)} values, expected one of each for every channel"
            )
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}, expected numbers above 0")
        for name in ("size", "min_size"):
            size = getattr(self, name)
            if size is not None and min(size) < 1:
                raise ConfigError(f"{name} is {size}, expected a height and a width of at least 1")

    def enlargement(self, height: int, width: int) -> float:
        """The factor, from 1 on, by which an image of this size is enlarged."""
        if self.min_size is None:
            return 1.0
        return max(1.0, math.sqrt(math.prod(self.min_size) / (height * width)))


@dataclass(frozen=True, kw_only=True)
class WeightsSpec:
    """One published set of weights: where it is, how to check it, what it was trained on and what it scores.

    ``metrics`` are percentages keyed by metric and protocol, ``published`` marks figures that the paper
    reports, as against ones measured on the file itself. ``taps_on_map`` is, by sampler, the share of its taps that
    read the map on images of the data set: 0 to 1, near 0 for a sampler that does nothing.
    """

    uri: str
    dataset: str
    labels: LabelSpace
    preprocess: Preprocess = field(default_factory=Preprocess)
    sha256: str | None = None
    license: str = "unknown"
    recipe: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    taps_on_map: Mapping[str, float] = field(default_factory=dict)

    def without_scores(self) -> WeightsSpec:
        """The same weights, for a model whose classes or input were changed: their scores do not hold for it."""
        return replace(self, metrics={}, published={}, taps_on_map={})


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All that is known of a model's weights.

    ``name`` is the model's own, ``preprocess`` how images become its input and ``labels`` what its classes mean, None
    where nobody says. ``weights`` are the task weights it was loaded from, None for a model without; scores that no
    longer hold, since the input or the classes changed, are left out of it. Of a loaded model, ``fresh`` are the
    tensors that the weights did not fill. Where the classes were given by name, ``reused`` are the classes whose
    classifier rows were kept, by what the weights call them, and ``reinitialized`` those with fresh rows.
    ``converted`` says what became of another library's tensors (`zoo.convert`).
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
        """Whether the scores recorded with the weights are those of this model: its classes are the weights'."""
        return self.weights is not None and self.labels is not None and self.labels.names == self.weights.labels.names

    def without_classes(self, fresh: tuple[str, ...]) -> Provenance:
        """The record of the same model after the tensors ``fresh`` of its classifier were replaced by random ones."""
        weights = None if self.weights is None else self.weights.without_scores()
        fresh = tuple(dict.fromkeys((*self.fresh, *fresh)))
        return replace(self, labels=None, weights=weights, fresh=fresh, reused={}, reinitialized=())

    def to_cfg(self) -> dict[str, Any]:
        """Plain data with timm's keys where timm has them. What is not known has no key."""
        known = {} if self.weights is None else to_dict(self.weights)
        for key in ("preprocess", "labels", *(() if self.scored else ("metrics", "published", "taps_on_map"))):
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


def _check_range(name: str, value: float, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, expected {low} to {high}")


ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen config as plain JSON-ready data; `from_dict` is its inverse."""
    return dataclasses.asdict(config)


def from_dict(cls: type[ConfigT], data: object, where: str = "config") -> ConfigT:
    """Build the frozen dataclass ``cls`` from parsed JSON or TOML, strictly.

    Raises ConfigError, naming the field by its path below ``where``, for an unknown or missing field and for a
    value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {_describe(data)}, expected a table of fields")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    unknown = sorted(str(key) for key in data if key not in fields)
    if unknown:
        raise ConfigError(f"{where} has unknown field {unknown[0][:60]!r}, expected {', '.join(fields)}")
    for name, declared in fields.items():
        required = declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(f"{where} lacks the field {name!r}")
    values = {name: _coerce(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {printable(error)}") from error


def printable(text: object) -> str:
    """Words from outside as they may stand in the one line of an error: not too many, and nothing but text."""
    return "".join(char if char.isprintable() else "?" for char in str(text)[:300])


def _coerce(hint: Any, value: object, where: str) -> Any:
    """``value`` as the type ``hint`` names: lists become tuples and whole numbers floats, nothing else converts."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} is {_describe(value)}, expected one of {', '.join(map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        words = [word for arg in args if typing.get_origin(arg) is Literal for word in typing.get_args(arg)]
        if value in words or (value is None and type(None) in args):
            return value
        other = next(arg for arg in args if arg is not type(None) and typing.get_origin(arg) is not Literal)
        if words and isinstance(value, str):
            kind = "a list" if typing.get_origin(other) is tuple else other.__name__
            raise ConfigError(f"{where} is {_describe(value)}, expected {' or '.join([kind, *words])}")
        return _coerce(other, value, where)
    if origin is tuple:
        return _coerce_tuple(args, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {_describe(value)}, expected a table")
        return {
            _coerce(args[0], key, where): _coerce(args[1], item, f"{where}.{printable(key)}")
            for key, item in value.items()
        }
    return value if hint is Any else _coerce_plain(hint, value, where)


def _coerce_plain(hint: Any, value: object, where: str) -> Any:
    # more would overflow a float, or fill the line that says what is wrong
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{where} is {_describe(value)}, expected a number of at most 64 bits")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int, but `true` is no count
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} is {_describe(value)}, expected {hint.__name__}")
    return value


def _coerce_tuple(args: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} is {_describe(value)}, expected a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_coerce(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(value) != len(args):
        raise ConfigError(f"{where} has {len(value)} entries, expected {len(args)}")
    return tuple(
        _coerce(arg, item, f"{where}[{index}]") for index, (arg, item) in enumerate(zip(args, value, strict=True))
    )


def _describe(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"
