"""Create models by name or address, with strict weight loading."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from ddsm_zoo.config import ModelConfig, Preprocess, Provenance
from ddsm_zoo.errors import ArgumentError, ArgumentTypeError
from ddsm_zoo.hub.address import is_uri
from ddsm_zoo.hub.model_files import find_weights
from ddsm_zoo.hub.safetensors_io import read_tensors
from ddsm_zoo.hub.state_dict import CLASSIFIER, check_fit, unwrap_names
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter, imagenet_preprocess, saving, unwrap
from ddsm_zoo.utils.files import LocalFile
from ddsm_zoo.zoo import table
from ddsm_zoo.zoo.loading import load_checkpoint, load_classes, load_task_weights
from ddsm_zoo.zoo.overrides import as_labels, configure
from ddsm_zoo.zoo.publishing import describe_weights as describe_weights  # documented here
from ddsm_zoo.zoo.sources import fetch_imagenet_weights, fetch_task_weights, fetcher, location, require_weights, resolve


def create_model(  # noqa: PLR0913  # the names of timm and of the Hub's client
    model_name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    labels: LabelSpace | Sequence[str] | None = None,
    in_chans: int = 3,
    pretrained_backbone: bool | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    strict: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    **config_overrides: Any,
) -> Segmenter:
    """Build a model by its name in the zoo, ``hf-hub:org/repo[@revision]`` or ``local-dir:FOLDER``.

    If the number of classes differs from the weights', everything but the classifier is loaded. The classifier is
    freshly initialized and named in ``provenance.fresh``.

    With ``labels``, classifier rows are also kept for the classes that the weights know by the same name, another
    spelling or a synonym (see `match_classes`). ``provenance.reused`` maps your class names to the weights' names.
    ``provenance.reinitialized`` lists your other classes, whose rows are freshly initialized.

    Task weights and a checkpoint contain a backbone, so no ImageNet weights are fetched for them.

    Args:
        model_name: Name in the zoo, where a dot counts as an underscore, or address.
        pretrained: Load the task weights. An architecture without task weights gets ImageNet weights for its backbone.
        num_classes: Number of classes K. Unless given, the configured number. 1 is binary, a sigmoid on one logit;
            masks then hold 0 for the background and 1 for the class. ``classes`` means the same.
        labels: Names of your classes in the order of the class ids.
        in_chans: Number of input channels. 3 means as configured. Any other number spreads the weights' first kernels
            over these channels, as timm does.
        pretrained_backbone: Force (True) or forbid (False) ImageNet weights for the backbone.
        checkpoint_path: Safetensors file, folder of a saved model, or folder of a training run.
        strict: Refuse weights that do not fit exactly. False loads the tensors that fit, warns, and names the others in
            ``provenance.fresh``.
        cache_dir: Folder for downloads. Unless given, the Hub client's cache.
        token: Token of the Hub. Unless given, the client's own. False sends none.
        local_files_only: Take files from the cache and ask no server.
        force_download: Download files even if the cache has them.
        config_overrides: Fields of `ModelConfig` and `DDSMConfig`, such as ``pixels=25`` or ``ddsm={"pixels": 25}``.
            ``backbone`` takes a short name or a timm name, ``backbone_args`` its options, such as
            ``{"drop_path_rate": 0.2}``.

    Returns:
        The model. It maps images (N, C, H, W) to logits (N, K, H, W).

    Raises:
        UnknownModelError: The zoo has no model of this name.
        WeightsNotFoundError: The task weights are not published yet.
        TypeError: An override is not a config field.
        ConfigError: A config value is out of range.
        ValueError: Options exclude each other.
        CheckpointError: The weights do not fit the model or are damaged.
        FileNotFoundError: A local file or folder does not exist.
        HubError: A download failed.

    Examples:
        >>> import ddsm_zoo, torch
        >>> model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=7).eval()
        >>> model(torch.rand(1, 3, 65, 97)).shape
        torch.Size([1, 7, 65, 97])
    """
    if pretrained and checkpoint_path is not None:
        raise ArgumentError(
            "got both pretrained=True and checkpoint_path, expected one source of weights; drop one of them",
            kind="options",
        )
    fetch = fetcher(cache_dir, token, local_files_only, force_download)
    if "classes" in config_overrides:  # smp's name for it
        if num_classes is not None:
            raise ArgumentTypeError(
                f"got num_classes={num_classes} and classes={config_overrides['classes']}, expected one of them",
                kind="options",
            )
        num_classes = config_overrides.pop("classes")
    label_space = as_labels(labels, num_classes)
    if label_space is not None:
        num_classes = len(label_space)
    entry, weights_file = resolve(model_name, config_overrides.pop("backbone", None), pretrained, fetch)
    config = configure(entry.config, num_classes, in_chans, config_overrides)
    task = entry.weights if pretrained else None
    if task is not None and weights_file is None:
        weights_file, task = fetch_task_weights(entry, task, fetch)
    if checkpoint_path is not None:
        weights_file = LocalFile(path=find_weights(checkpoint_path))
    tensors = None if weights_file is None else unwrap_names(read_tensors(weights_file.path))
    if is_uri(model_name):  # only its weights vouch for its size
        skeleton = saving.on_meta(Segmenter, config)
        if strict and task is not None and weights_file is not None and tensors is not None:
            check_fit(skeleton, tensors, location(weights_file, task), CLASSIFIER, entry.config.in_chans)
        else:
            saving.check_size(skeleton, model_name)
    imagenet = pretrained if pretrained_backbone is None else pretrained_backbone
    backbone_weights = fetch_imagenet_weights(config.backbone, fetch) if imagenet and weights_file is None else None
    model = Segmenter(config, backbone_weights=backbone_weights)
    model.provenance = _describe(entry, config, label_space)
    if weights_file is not None and tensors is not None:
        load = partial(load_classes, model, tensors, location(weights_file, task), strict=strict)
        if task is not None:
            load_task_weights(model, entry, task, weights_file, label_space, load)
        else:
            load_checkpoint(model, weights_file, label_space, load)
    return model


def from_pretrained(source: str | os.PathLike[str], *, revision: str | None = None, **options: Any) -> Segmenter:
    """Load a model with its weights, ready to predict.

    `Segmenter.from_pretrained` loads saved models exactly as they were saved. This function also takes names of the zoo
    and the options of `create_model`.

    Args:
        source: Folder of a saved model, ``org/name`` on the Hub, or name in the zoo.
        revision: Branch, tag or commit on the Hub.
        options: Options of `create_model`, such as ``num_classes``, ``token``, ``local_files_only`` or ``strict``.

    Returns:
        The model in evaluation mode.

    Raises:
        WeightsNotFoundError: The name is an architecture without task weights.
        Exception: Anything that `create_model` raises.
    """
    name = saving.as_uri(source, revision)
    if not is_uri(name):
        require_weights(name, options.get("backbone"))
    return create_model(name, pretrained=True, **options).eval()


def create_trained(model_name: str) -> Segmenter:
    """Create a model with its task weights from a name or an address, ready to predict.

    Raises WeightsNotFoundError for an architecture without task weights, before anything is downloaded, and the errors
    of `create_model`.
    """
    require_weights(model_name)
    return create_model(model_name, pretrained=True)


def resolve_data_config(model: Segmenter) -> Preprocess:
    """Return the image preprocessing of a model.

    Args:
        model: Model created by this package, bare or wrapped.

    Returns:
        The preprocessing that the model's weights were trained with. Without task weights, that of the backbone's
            ImageNet weights.

    Examples:
        >>> import ddsm_zoo, numpy as np
        >>> model = ddsm_zoo.create_model("uper_ddsm_tiny")
        >>> transform = ddsm_zoo.create_transform(ddsm_zoo.resolve_data_config(model))
        >>> transform(np.zeros((64, 96, 3), np.uint8)).shape
        torch.Size([3, 64, 96])
    """
    return unwrap(model).provenance.preprocess


def _describe(entry: table.Entry, config: ModelConfig, labels: LabelSpace | None) -> Provenance:
    """Build the provenance of a model before any weights are loaded: name, input and, if known, labels."""
    preprocess = entry.preprocess or imagenet_preprocess(config.backbone)
    if labels is not None:
        return Provenance(name=entry.name, preprocess=preprocess, labels=labels, reinitialized=labels.names)
    named = entry.weights is not None and len(entry.weights.labels) == config.num_classes
    return Provenance(
        name=entry.name, preprocess=preprocess, labels=entry.weights.labels if named and entry.weights else None
    )
