"""Contents of the ``config.json`` of a saved model, with timm's keys where timm has them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ddsm_zoo.config import ModelConfig, WeightsSpec
from ddsm_zoo.errors import ArgumentError, MissingFileError
from ddsm_zoo.utils.files import to_json
from ddsm_zoo.utils.plain_data import ConfigError, from_dict, to_dict

MAX_CONFIG_BYTES = 16 * 2**20
_PREPROCESS_KEYS = ("mean", "std", "size", "min_size")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a model as data: its name, its architecture and the source of its weights.

    Raises ConfigError when its class counts disagree, for control characters in its texts, and for numbers that JSON
    does not have.
    """

    architecture: str
    num_classes: int
    label_names: tuple[str, ...]
    model_args: ModelConfig
    pretrained_cfg: WeightsSpec

    def __post_init__(self) -> None:
        counts = {
            "num_classes": self.num_classes,
            "label_names": len(self.label_names),
            "model_args.num_classes": self.model_args.num_classes,
            "pretrained_cfg.labels": len(self.pretrained_cfg.labels),
        }
        if len(set(counts.values())) != 1:
            found = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise ConfigError(f"the numbers of classes disagree: {found}", kind="classes-differ", got=counts)
        if self.label_names != self.pretrained_cfg.labels.names:
            raise ConfigError(
                "label_names and pretrained_cfg.labels.names differ, expected the same names",
                kind="classes-differ",
                name="label_names",
            )
        for value in _leaves(to_dict(self)):
            # Cards and terminals show these texts, where an escape sequence, a line break or a change of direction
            # could deceive the reader. A lone surrogate cannot be written, and YAML refuses noncharacters.
            if isinstance(value, str) and _UNPRINTABLE.search(value):
                raise ConfigError(f"{value[:80]!a} has control characters, expected plain text", got=value)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError.of("a number of the weights' description", value, "finite ones")


def read_manifest(path: Path) -> Manifest:
    """Parse a ``config.json`` strictly. Raises FileNotFoundError, and ConfigError for unexpected content."""
    if not path.is_file():
        raise MissingFileError(
            f"no config.json in {path.parent}: expected a folder written by save_pretrained", path=path
        )
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path} has {path.stat().st_size} bytes, expected a config.json of a few thousand",
            kind="syntax",
            path=path,
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}", kind="syntax", path=path) from error
    if isinstance(data, Mapping) and isinstance(data.get("model_args"), Mapping):
        data = {**data, "model_args": _dated(data["model_args"])}
    if isinstance(data, Mapping) and isinstance(data.get("pretrained_cfg"), Mapping):
        data = {**data, "pretrained_cfg": _nest(data["pretrained_cfg"])}
    return from_dict(Manifest, data, where=str(path))


def render_manifest(manifest: Manifest) -> str:
    """Format the text of ``config.json``. `read_manifest` is its inverse."""
    return to_json({**to_dict(manifest), "pretrained_cfg": flatten(manifest.pretrained_cfg)})


def flatten(weights: WeightsSpec) -> dict[str, Any]:
    """Convert the spec to plain data, with ``mean``, ``std`` and ``size`` at the top as in timm's config."""
    data = to_dict(weights)
    preprocess = data.pop("preprocess")
    if weights.threshold is None:  # several classes have none
        del data["threshold"]
    return {**data, **preprocess}


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: value for key, value in flat.items() if key not in _PREPROCESS_KEYS}
    return {**nested, "preprocess": {key: flat[key] for key in _PREPROCESS_KEYS if key in flat}}


def _dated(model_args: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add to the arguments the DDSM reading they were written under. Version 0.1.0 wrote none."""
    ddsm, fusion = model_args.get("ddsm"), model_args.get("fusion")
    if not isinstance(ddsm, Mapping) or "reading" in ddsm or not str(fusion).startswith("ddsm"):
        return model_args  # other fusions have not changed
    return {**model_args, "ddsm": {**ddsm, "reading": 1}}


def _refuse_number(name: str) -> NoReturn:
    raise ArgumentError(f"{name[:40]} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_number(digits)


def _leaves(data: object) -> Iterator[object]:
    """Iterate over all keys and values of nested plain data."""
    if isinstance(data, Mapping):
        yield from _leaves([*data.keys(), *data.values()])
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _leaves(value)
    else:
        yield data
