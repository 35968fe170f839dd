"""Changes that a caller makes to a model: fields of its config and names of its classes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ddsm_zoo.config import BACKBONE_ARGS, DDSMConfig, ModelConfig
from ddsm_zoo.errors import ArgumentError, ArgumentTypeError
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils.plain_data import from_dict, to_dict

# Options of timm and smp with another name or place here
_ELSEWHERE = {
    "features_only": "model.backbone gives the four feature levels",
    "global_pool": "a segmentation model pools nothing",
    "encoder_name": "pass backbone=, a name of timm",
    "encoder_weights": "pass pretrained_backbone=True",
    "encoder_output_stride": "pass backbone_args={'output_stride': 16}",
    "in_channels": "pass in_chans=",
    "decoder_channels": "pass width=",
    "activation": "models give logits",
}


def configure(config: ModelConfig, num_classes: int | None, in_chans: int, overrides: Mapping[str, Any]) -> ModelConfig:
    """Apply the changes to ``config`` strictly: every name must be a field and every value valid for it."""
    model_fields = {field.name for field in dataclasses.fields(ModelConfig)}
    # `width` is the decoder's; set the module's own with ddsm={"width": ...}
    ddsm_fields = {field.name for field in dataclasses.fields(DDSMConfig)}
    module = overrides.get("ddsm", {})
    module = to_dict(module) if isinstance(module, DDSMConfig) else module
    if not isinstance(module, Mapping):
        raise ArgumentTypeError(
            f"ddsm is {type(module).__name__}, expected a DDSMConfig or a dict of its fields",
            name="ddsm",
            got=type(module).__name__,
        )
    _check_names(overrides, model_fields | ddsm_fields)
    _check_names(module, ddsm_fields)
    module = {**module, **{name: value for name, value in overrides.items() if name in ddsm_fields - model_fields}}
    changes = {name: value for name, value in overrides.items() if name in model_fields}
    if num_classes is not None:
        changes["num_classes"] = num_classes
    if in_chans != 3:
        changes["in_chans"] = in_chans
    data = {**to_dict(config), **changes, "ddsm": {**to_dict(config.ddsm), **module}}
    return from_dict(ModelConfig, data)


def _check_names(given: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        if unknown[0] in BACKBONE_ARGS:
            raise ArgumentTypeError(
                f"create_model() takes {unknown[0]} as backbone_args={{{unknown[0]!r}: ...}}",
                kind="unknown-option",
                name=unknown[0],
            )
        if unknown[0] in _ELSEWHERE:
            raise ArgumentTypeError(
                f"create_model() has no option {unknown[0]!r}; {_ELSEWHERE[unknown[0]]}",
                kind="unknown-option",
                name=unknown[0],
            )
        nearest = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(sorted(known))}"
        raise ArgumentTypeError(
            f"create_model() got an unknown override {unknown[0]!r}; {hint}", kind="unknown-option", name=unknown[0]
        )


def as_labels(labels: LabelSpace | Sequence[str] | None, num_classes: int | None) -> LabelSpace | None:
    """Convert a caller's labels to a LabelSpace, and compare their number with ``num_classes``."""
    if labels is None:
        return None
    if not isinstance(labels, LabelSpace):
        if isinstance(labels, str) or not all(isinstance(name, str) for name in labels):
            raise ArgumentTypeError(
                f"labels is {labels!r}, expected a LabelSpace or a list of class names", name="labels", got=labels
            )
        labels = LabelSpace.from_names(labels, ignore_index=max(255, len(labels)))
    if num_classes not in (None, len(labels)):
        raise ArgumentError(
            f"got {len(labels)} labels and num_classes={num_classes}, expected one label for each class",
            kind="classes-differ",
            got=len(labels),
            expected=num_classes,
        )
    return labels
