"""Names of models: listed, looked up and registered.

A dot in a name is read as an underscore, so timm's spelling ``uper_ddsm_r101.cityscapes`` names the same model.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from ddsm_zoo.config import DDSMConfig, ModelConfig, Preprocess, WeightsSpec
from ddsm_zoo.errors import ArgumentError, UserError
from ddsm_zoo.zoo.table import (
    BACKBONES,
    ORGANIZATION,
    BackboneRow,
    Entry,
    ambiguous,
    architecture,
    architectures,
    backbone_preprocess,
    backbone_row,
    build_config,
    build_table,
    families,
)


class UnknownModelError(UserError, LookupError):
    """Raised for a model name that is not in the table. The message suggests the nearest names."""

    kind = "unknown-model"


# Models of the zoo and of `register_model`. `_table` adds the combinations with registered parts.
_TABLE = build_table()


def _table() -> dict[str, Entry]:
    """Build the table of all models. Raises ValueError if a name is ambiguous because of registered parts."""
    known, table = families(), dict(_TABLE)
    for entry in architectures():
        if entry.name in known or table.setdefault(entry.name, entry) != entry:
            raise ambiguous(entry.name)
    return table


def list_models(
    filter: str | Sequence[str] = "*", pretrained: bool = False, exclude_filters: str | Sequence[str] = ()
) -> list[str]:
    """List the names of models.

    Args:
        filter: Shell wildcards. A name must match at least one.
        pretrained: Keep only models whose task weights exist. Unpublished weights do not count.
        exclude_filters: Shell wildcards. A name must match none.

    Returns:
        Sorted names.

    Raises:
        ValueError: Registered parts make a name ambiguous.

    Examples:
        >>> import ddsm_zoo
        >>> ddsm_zoo.list_models("uper*_r18")
        ['uper_dcn_r18', 'uper_ddsm_c_r18', 'uper_ddsm_r18', 'uper_ddsm_s_r18', 'uper_r18']
    """
    names = _matching(filter) - _matching(exclude_filters)
    table = _table()
    return sorted(name for name in names if table[name].published or not pretrained)


def list_pretrained(filter: str | Sequence[str] = "*") -> list[str]:
    """List the models that have task weights today, for ``pretrained=True``.

    Args:
        filter: Shell wildcards. A name must match at least one.

    Returns:
        Sorted names.
    """
    return list_models(filter, pretrained=True)


def is_model(name: str) -> bool:
    """Return True if the table has this name.

    Args:
        name: Name of a model. A dot counts as an underscore.
    """
    return _normalize(name) in _table()


def model_config(name: str) -> ModelConfig:
    """Return the architecture of a name.

    Args:
        name: Name of a model. A dot counts as an underscore.

    Raises:
        UnknownModelError: The table has no model of this name.
    """
    return find(name).config


def register_model(name: str, config: ModelConfig, weights: WeightsSpec | None = None) -> None:
    """Add a model to the table of this process.

    Args:
        name: Lower-case letters, digits and underscores, starting with a letter.
        config: Architecture.
        weights: Task weights. Their labels must match the number of classes in ``config``.

    Raises:
        ValueError: The name is taken or malformed, or the weights have another number of classes than ``config``.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ArgumentError(
            f"{name!r} is no model name, expected lower-case letters, digits and underscores",
            kind="bad-name",
            name=name,
        )
    if name in _table() or name in families():
        raise ArgumentError(
            f"a model named {name!r} exists already; register yours under another name", kind="bad-name", name=name
        )
    if weights is not None and len(weights.labels) != config.num_classes:
        raise ArgumentError(
            f"the config of {name!r} has {config.num_classes} classes and its weights {len(weights.labels)}, "
            "expected the same number",
            kind="classes-differ",
            name=name,
            got=len(weights.labels),
            expected=config.num_classes,
        )
    preprocess = backbone_preprocess(config.backbone) if weights is None else weights.preprocess
    _TABLE[name] = Entry(name=name, config=config, weights=weights, preprocess=preprocess)


def register_backbone(
    name: str,
    timm_name: str,
    *,
    width: int = 256,
    fused_stages: tuple[int, ...] = (2, 3, 4),
    ddsm: DDSMConfig | None = None,
    separable: bool = False,
    preprocess: Preprocess | None = None,
) -> None:
    """Give a timm backbone a short name, so that ``uper_{name}``, ``deeplabv3plus_ddsm_{name}`` and so on are models.

    Args:
        name: Lower-case letters, digits and underscores.
        timm_name: A timm model with feature levels at strides 4, 8, 16 and 32. Models that you registered in timm
            count.
        width: Number of feature channels in the decoders.
        fused_stages: Stages, out of 2, 3 and 4, at which UPerNet uses the fusion module.
        ddsm: Sizes of the modules.
        separable: Use depthwise-separable 3 x 3 convolutions in the decoders, for light backbones.
        preprocess: Input that the ImageNet weights expect. Unless given, timm's.

    Raises:
        ValueError: The name is taken or malformed.
        ConfigError: The sizes are invalid, or timm has no model ``timm_name``.
    """
    row = BackboneRow(
        timm_name=timm_name,
        width=width,
        fused_stages=fused_stages,
        ddsm=ddsm or DDSMConfig(),
        separable=separable,
        preprocess=preprocess,
    )
    build_config("uper", "none", row)
    BACKBONES.register(name, row)


def find(name: str, backbone: str | None = None) -> Entry:
    """Look up the entry of a name, optionally on another backbone (short name or timm name).

    A family such as ``uper_ddsm`` has no backbone of its own and needs one here. If the environment variable
    DDSM_ZOO_ORG is set, Hub addresses in the entry use that organization. Raises UnknownModelError.
    """
    key, known, table = _normalize(name), families(), _table()
    if key in known:
        if backbone is None:
            raise UnknownModelError(
                f"{name!r} names no backbone, expected {key}_{{{','.join(BACKBONES)}}}, or a timm name as backbone, "
                "such as convnext_tiny.fb_in22k",
                kind="no-backbone",
                name=name,
            )
        return Entry(name=key, config=architecture(*known[key], backbone), preprocess=backbone_row(backbone).preprocess)
    if key not in table:
        raise UnknownModelError(_unknown(name, key, table), name=name)
    entry = with_backbone(table[key], backbone)
    return dataclasses.replace(entry, weights=_at_organization(entry.weights))


def with_backbone(entry: Entry, backbone: str | None) -> Entry:
    """Return the entry on another backbone (short name or timm name) in its own geometry. None changes nothing."""
    if backbone is None:
        return entry
    row = backbone_row(backbone)
    config = dataclasses.replace(entry.config, backbone=row.timm_name)
    preprocess = entry.preprocess if entry.weights else row.preprocess
    return dataclasses.replace(entry, config=config, preprocess=preprocess)


def _at_organization(weights: WeightsSpec | None) -> WeightsSpec | None:
    organization = os.environ.get("DDSM_ZOO_ORG")
    ours = f"hf-hub:{ORGANIZATION}/"
    if weights is None or not organization or not weights.uri.startswith(ours):
        return weights
    # Commit, hash and scores of a pin belong to our repository. Another one describes its weights in its own config
    name = weights.uri.removeprefix(ours).partition("@")[0]
    return dataclasses.replace(weights, uri=f"hf-hub:{organization}/{name}", sha256=None, metrics={})


def _unknown(name: str, key: str, table: Mapping[str, Entry]) -> str:
    message = f"unknown model {name[:80]!r}"
    known, _, dataset = key.rpartition("_")
    if known in table and table[known].weights is None:
        message += f": {known} has no weights for {dataset[:40]!r}"
        candidates = [known, *(other for other in table if other.startswith(f"{known}_"))]
        nearest = difflib.get_close_matches(key, candidates, n=3, cutoff=0.0)
    else:
        spelled = key[:80].lower().replace("-", "_")  # names have neither capitals nor dashes
        nearest = difflib.get_close_matches(spelled, [*table, *families()], n=3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "`ddsm-zoo list` has all names"
    parts = next((key.removesuffix(f"_{row}") for row in BACKBONES if key.endswith(f"_{row}")), None)
    if parts is not None and parts not in families():
        hint += " Parts of your own must be registered first: import their module (--plugin MODULE)"
    return f"{message}; {hint}"


def _matching(filters: str | Iterable[str]) -> set[str]:
    patterns = [filters] if isinstance(filters, str) else list(filters)
    return {name for pattern in patterns for name in fnmatch.filter(_table(), _normalize(pattern))}


def _normalize(name: str) -> str:
    return name.replace(".", "_")
