"""Saving and loading of segmenters, behind `Segmenter.save_pretrained`, `push_to_hub` and `from_pretrained`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from ddsm_zoo.config import ModelConfig, Provenance, WeightsSpec
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.hub.address import is_uri, public_uri
from ddsm_zoo.hub.config_file import Manifest, read_manifest, render_manifest
from ddsm_zoo.hub.download import fetch
from ddsm_zoo.hub.model_card import render_card
from ddsm_zoo.hub.model_files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.hub.safetensors_io import pack_tensors, read_tensors, verify
from ddsm_zoo.hub.state_dict import AUXILIARY, check_fit, load_state_dict, unwrap_names
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils.files import CheckpointError, LocalFile
from ddsm_zoo.utils.plain_data import ConfigError

if TYPE_CHECKING:
    from ddsm_zoo.models.segmenter import Segmenter

ModelT = TypeVar("ModelT", bound=nn.Module)
SegmenterT = TypeVar("SegmenterT", bound="Segmenter")

# Limit for a model without weights whose config comes from outside: 2 GB in memory.
MAX_PARAMETERS = 500_000_000


def family(config: ModelConfig) -> str:
    """Return the joint name of a decoder and a fusion: ``uper``, ``uper_ddsm``, ..."""
    return config.decoder if config.fusion == "none" else f"{config.decoder}_{config.fusion}"


def architecture_name(config: ModelConfig, name: str | None = None) -> str:
    """Return ``name`` if it fits this architecture, as ``uper_ddsm_r50`` does, else the decoder's and fusion's name."""
    own = family(config)
    return name if name is not None and (name == own or name.startswith(f"{own}_")) else own


def as_uri(source: str | os.PathLike[str], revision: str | None = None) -> str:
    """Convert a folder, ``org/name`` or a URI to the URI of a saved model. Other names stay unchanged.

    Raises ValueError if ``revision`` is given for anything but a repository that has none in its name.
    """
    name = os.fspath(source)
    if not is_uri(name) and Path(name).expanduser().is_dir():
        name = f"local-dir:{name}"
    elif not is_uri(name) and "/" in name:
        name = f"hf-hub:{name}"
    if revision is None:
        return name
    if not name.startswith("hf-hub:") or "@" in name:
        raise ArgumentError(
            f"{name!r} takes no revision={revision!r}, expected a repository org/name beside it",
            kind="options",
            name="revision",
            got=revision,
        )
    return f"{name}@{revision}"


def read_saved(path: Path) -> Manifest:
    """Read the ``config.json`` of a saved model.

    Raises the errors of `read_manifest`, and ConfigError if the name does not fit the architecture."""
    manifest = read_manifest(path)
    if manifest.architecture != architecture_name(manifest.model_args, manifest.architecture):
        raise ConfigError(
            f"{path}.architecture is {manifest.architecture[:80]!r}, expected a name that begins with "
            f"{architecture_name(manifest.model_args)}, which is what its model_args describe",
            name="architecture",
            got=manifest.architecture,
            path=path,
        )
    return manifest


def load(
    build: Callable[[ModelConfig], SegmenterT],
    uri: str,
    fetch: Callable[..., list[LocalFile]] = fetch,
    *,
    strict: bool = True,
) -> SegmenterT:
    """Load the model saved at a URI, as it was saved, in evaluation mode.

    Raises HubError, FileNotFoundError, ConfigError and CheckpointError, and ValueError for a name that is not a URI.
    """
    if not is_uri(uri):
        raise ArgumentError(
            f"{public_uri(uri)[:80]!r} is no saved model, expected a folder or org/name; the zoo's names are "
            "those of ddsm_zoo.from_pretrained",
            kind="address",
            name=public_uri(uri),
        )
    config_file, weights_file = fetch(uri, CONFIG_FILE, WEIGHTS_FILE)
    where = str(weights_file.path)
    manifest, tensors = read_saved(config_file.path), read_tensors(weights_file.path)
    skeleton = on_meta(build, manifest.model_args)
    if strict:
        check_fit(skeleton, tensors, where)
    else:
        check_size(skeleton, uri)
    model = build(manifest.model_args)
    fresh = load_state_dict(model, tensors, where, strict=strict)
    weights = dataclasses.replace(
        manifest.pretrained_cfg, uri=uri, sha256=verify(weights_file, manifest.pretrained_cfg.sha256)
    )
    model.provenance = Provenance(
        name=manifest.architecture,
        preprocess=weights.preprocess,
        labels=weights.labels,
        weights=weights,
        fresh=tuple(fresh),
    )
    return model.eval()


def on_meta(build: Callable[[ModelConfig], ModelT], config: ModelConfig) -> ModelT:
    """Build the model without memory for its tensors."""
    with torch.device("meta"):
        return build(config)


def check_size(model: nn.Module, where: str) -> None:
    """Raise ConfigError for a model from outside, on the meta device, that is very large and has no weights."""
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAX_PARAMETERS:
        raise ConfigError(
            f"{where} describes a model of {count / 1e6:.0f} million parameters, expected at most "
            f"{MAX_PARAMETERS / 1e6:.0f} million without its weights; load it with them, by pretrained=True",
            kind="model-too-large",
            name=where,
            got=count,
            expected=MAX_PARAMETERS,
        )


def pack(model: Segmenter, *, half: bool = False, uri: str = "local-dir:PATH") -> dict[str, bytes]:
    """Build the contents of a saved model's files by name, ``config.json`` last: it holds the hash of the weights.

    ``uri`` is the address that the card gives its readers.
    """
    if model.fused:
        raise CheckpointError(
            "the model was fused for inference and cannot be saved; save it before fuse()", kind="fused-model"
        )
    state = unwrap_names(model.state_dict())  # parts may be compiled
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(AUXILIARY)}
    if half:
        # except tensors with one value per channel: they are small, and a variance may exceed the range of 16 bits
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    config = dataclasses.replace(model.config, num_classes=model.num_classes, auxiliary=False)
    check_fit(on_meta(type(model), config), tensors, "what is to be saved")
    content = pack_tensors(tensors)
    weights = _weights_of(model)
    manifest = Manifest(
        architecture=architecture_name(model.config, model.provenance.name),
        num_classes=model.num_classes,
        label_names=weights.labels.names,
        model_args=config,
        pretrained_cfg=dataclasses.replace(weights, sha256=hashlib.sha256(content).hexdigest()),
    )
    return {
        WEIGHTS_FILE: content,
        CARD_FILE: render_card(manifest, uri).encode(),
        CONFIG_FILE: render_manifest(manifest).encode(),
    }


def _weights_of(model: Segmenter) -> WeightsSpec:
    """Return the record of the model's weights, with required fields filled in."""
    known = model.provenance
    labels, uri = known.labels, f"file:{WEIGHTS_FILE}"
    if labels is None or len(labels) != model.num_classes:
        labels = numbered_labels(model.num_classes)
    threshold = known.threshold if model.num_classes == 1 else None
    if known.weights is None:
        return WeightsSpec(uri=uri, dataset="unknown", labels=labels, preprocess=known.preprocess, threshold=threshold)
    kept = known.scored and labels == known.labels
    weights = known.weights if kept else known.weights.without_scores()
    return dataclasses.replace(weights, uri=uri, labels=labels, preprocess=known.preprocess, threshold=threshold)


def numbered_labels(count: int) -> LabelSpace:
    """Build labels for unnamed classes. A single one is the foreground."""
    if count == 1:
        return LabelSpace.from_names(["foreground"])
    return LabelSpace.from_names([f"class {index}" for index in range(count)], ignore_index=max(255, count))
