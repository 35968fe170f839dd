"""From a name to a model and from a model to files: look up, build, load strictly, save."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_zoo import hub, zoo
from ddsm_zoo.config import DDSMConfig, ModelConfig, Preprocess, WeightsSpec, from_dict, to_dict
from ddsm_zoo.hub import CheckpointError, HubError, abbreviate
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.manifest import Manifest, flatten, preprocess_of, read_manifest, render_manifest, unflatten
from ddsm_zoo.model_card import render_card
from ddsm_zoo.models import Segmenter, build, hub_address, imagenet_preprocess, packaged_weights

AUXILIARY = "auxiliary."
CLASSIFIER = ("classifier.weight", "classifier.bias")

logger = logging.getLogger(__name__)


class WeightsNotFoundError(LookupError):
    """Task weights that nobody has published yet; names the recipe that makes them and models that have weights."""


def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    pretrained_backbone: bool | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **config_overrides: Any,
) -> Segmenter:
    """Build a model by its name in the zoo, ``hf-hub:org/repo[@revision]`` or ``local-dir:FOLDER``.

    ``pretrained`` loads the task weights; an architecture that has none gets its backbone's ImageNet weights.
    ``num_classes`` other than the weights' keeps everything but the classifier, which is freshly initialised and
    named in ``pretrained_cfg["dropped"]``. ``in_chans`` 3 means as configured. ``pretrained_backbone`` forces or
    forbids the ImageNet weights; task weights and a ``checkpoint_path`` bring their own backbone, so that nothing is
    fetched for it then. ``checkpoint_path`` is a safetensors file, a saved model's folder or a training run's.
    ``config_overrides`` are fields of `ModelConfig` and of `DDSMConfig` (``pixels=25`` or ``ddsm={"pixels": 25}``);
    ``backbone`` is a short name or a timm name.

    Raises TypeError for an unknown override, ConfigError for a value that cannot be, UnknownModelError,
    WeightsNotFoundError, HubError, FileNotFoundError, CheckpointError, and ValueError for options that exclude each
    other.
    """
    if pretrained and checkpoint_path is not None:
        raise ValueError(
            "got both pretrained=True and checkpoint_path, expected one source of weights; drop one of them"
        )
    entry, weights_file = _resolve(model_name, config_overrides.pop("backbone", None), pretrained, cache_dir)
    config = _configure(entry.config, num_classes, in_chans, config_overrides)
    task = entry.weights if pretrained else None
    if task is not None and config.in_chans != entry.config.in_chans:
        raise ValueError(
            f"the weights of {entry.name} take {entry.config.in_chans} channels, got in_chans={config.in_chans}; "
            "use pretrained=False, with pretrained_backbone=True for the ImageNet weights alone"
        )
    if task is not None and weights_file is None:
        weights_file = _fetch_task_weights(entry, task, cache_dir)
    if checkpoint_path is not None:
        weights_file = hub.find_weights(checkpoint_path)
    imagenet = pretrained if pretrained_backbone is None else pretrained_backbone
    backbone_weights = _imagenet_weights(config.backbone, cache_dir) if imagenet and weights_file is None else None
    model = build(config, backbone_weights=backbone_weights)
    model.pretrained_cfg = _describe(entry, config)
    if task is not None and weights_file is not None:
        _load_task_weights(model, entry, task, weights_file)
    elif weights_file is not None:
        _load_checkpoint(model, weights_file)
    return model


def create_trained(model_name: str) -> Segmenter:
    """The model of that name or address with its task weights, ready to predict.

    Raises WeightsNotFoundError for an architecture that has none, before anything is fetched, and what `create_model`
    raises.
    """
    if look_up(model_name).weights is None:
        raise WeightsNotFoundError(
            f"{model_name} is an architecture without task weights and cannot predict; "
            f"models whose weights exist: {_available()}"
        )
    return create_model(model_name, pretrained=True)


def look_up(model_name: str) -> zoo.Entry:
    """What a name or an address stands for: architecture, weights, input. Only a config is fetched.

    Raises UnknownModelError, HubError, FileNotFoundError, and ConfigError for a config that cannot be.
    """
    return _resolve(model_name, None, False, None)[0]


def load_weights(
    model: Segmenter, state_dict: Mapping[str, Tensor], where: str = "the checkpoint", dropped: Collection[str] = ()
) -> list[str]:
    """Copy a state dict into ``model`` if it fits exactly, and return the tensors that stay freshly initialised.

    Those are the ones in ``dropped``, which are not read, and the auxiliary head's where the file has none of it; a
    head in the file that the model does not have is left out. Half precision is converted. Raises CheckpointError,
    before anything is changed, for missing, unexpected and wrongly shaped tensors, NaN and infinity.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in dropped}
    given = {name: tensor for name, tensor in state_dict.items() if name not in dropped}
    if not any(name.startswith(AUXILIARY) for name in given):
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(AUXILIARY)}
    elif model.auxiliary is None:
        given = {name: tensor for name, tensor in given.items() if not name.startswith(AUXILIARY)}
    problems = _misfits(expected, given)
    if problems:
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems)}{_class_hint(expected, given)}")
    model.load_state_dict(given, strict=False)
    return [name for name in model.state_dict() if name not in given]


def resolve_data_config(model: Segmenter) -> Preprocess:
    """How images become the model's input: as its weights were trained, else as its backbone's were on ImageNet."""
    if "mean" in model.pretrained_cfg:
        return preprocess_of(model.pretrained_cfg)
    return imagenet_preprocess(model.config.backbone)


def describe_weights(model: Segmenter, weights: WeightsSpec) -> None:
    """Record what is known of the weights in ``model.pretrained_cfg``, to be saved with them; after training, say.

    Raises ValueError when the labels are not as many as the model's classes.
    """
    if len(weights.labels) != model.num_classes:
        raise ValueError(
            f"got {len(weights.labels)} labels for a model of {model.num_classes} classes, expected one each"
        )
    name = model.pretrained_cfg.get("name", type(model).__name__)
    model.pretrained_cfg = {"name": name, **flatten(weights)}


def save_pretrained(model: Segmenter, directory: str | os.PathLike[str], *, half: bool = False) -> None:
    """Write ``model.safetensors``, ``README.md`` and ``config.json``, which ``local-dir:`` turns into the same model.

    The auxiliary head, which only training uses, is left out. ``half`` stores kernels in 16 bits, for half the size;
    they load as float32, rounded. What the files say of the weights is what ``model.pretrained_cfg`` says. Raises
    OutputError, and ConfigError for a ``pretrained_cfg`` that cannot be.
    """
    hub.write_files(directory, pack(model, half=half))


def pack(model: Segmenter, *, half: bool = False) -> dict[str, bytes]:
    """The content of a saved model's files by name, ``config.json`` last: it holds the hash of the weights."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(AUXILIARY)}
    if half:
        # not what has one value per channel: it is small, and a variance may lie outside the range of 16 bits
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    content = hub.pack_tensors(tensors)
    weights = _recorded_weights(model)
    manifest = Manifest(
        architecture=model.pretrained_cfg.get("name", type(model).__name__),
        num_classes=model.num_classes,
        label_names=weights.labels.names,
        model_args=dataclasses.replace(model.config, num_classes=model.num_classes, auxiliary=False),
        pretrained_cfg=dataclasses.replace(weights, sha256=hashlib.sha256(content).hexdigest()),
    )
    return {
        hub.WEIGHTS_FILE: content,
        hub.CARD_FILE: render_card(manifest).encode(),
        hub.CONFIG_FILE: render_manifest(manifest).encode(),
    }


def _resolve(
    name: str, backbone: str | None, pretrained: bool, cache_dir: str | os.PathLike[str] | None
) -> tuple[zoo.Entry, Path | None]:
    """What the name stands for, and the weights that came with it from an address."""
    if not hub.is_uri(name):
        return zoo.find(name, backbone), None
    wanted = (hub.CONFIG_FILE, hub.WEIGHTS_FILE) if pretrained else (hub.CONFIG_FILE,)
    files = hub.fetch(name, *wanted, cache_dir=cache_dir)
    manifest = read_manifest(files[0])
    weights = dataclasses.replace(manifest.pretrained_cfg, uri=name)
    entry = zoo.Entry(
        name=manifest.architecture, config=manifest.model_args, weights=weights, preprocess=weights.preprocess
    )
    return zoo.with_backbone(entry, backbone), files[1] if pretrained else None


def _configure(
    config: ModelConfig, num_classes: int | None, in_chans: int, overrides: Mapping[str, Any]
) -> ModelConfig:
    """``config`` with the changes, strictly: every name must be a field, every value one that it may hold."""
    model_fields = {field.name for field in dataclasses.fields(ModelConfig)}
    # `width` is the decoder's; the module's own is reached by ddsm={"width": ...}
    ddsm_fields = {field.name for field in dataclasses.fields(DDSMConfig)}
    module = overrides.get("ddsm", {})
    module = to_dict(module) if isinstance(module, DDSMConfig) else module
    if not isinstance(module, Mapping):
        raise TypeError(f"ddsm is {type(module).__name__}, expected a DDSMConfig or a dict of its fields")
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
        nearest = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(sorted(known))}"
        raise TypeError(f"create_model() got an unknown override {unknown[0]!r}; {hint}")


def _imagenet_weights(timm_name: str, cache_dir: str | os.PathLike[str] | None) -> Mapping[str, Tensor]:
    logger.info("ImageNet weights for %s; decoder and classifier are freshly initialised", timm_name)
    packaged = packaged_weights(timm_name)
    if packaged is not None:
        return packaged
    (path,) = hub.fetch(hub_address(timm_name), hub.WEIGHTS_FILE, cache_dir=cache_dir)
    return hub.read_tensors(path)


def _fetch_task_weights(entry: zoo.Entry, task: WeightsSpec, cache_dir: str | os.PathLike[str] | None) -> Path:
    try:
        (path,) = hub.fetch(task.uri, hub.WEIGHTS_FILE, cache_dir=cache_dir)
    except HubError as error:
        if entry.published:
            raise
        raise WeightsNotFoundError(
            f"the weights of {entry.name} are not published yet ({error}); train them with recipe {task.recipe}, "
            f"or use a model whose weights exist: {_available()}"
        ) from error
    return path


def _available() -> str:
    return ", ".join(zoo.list_pretrained()) or "none so far"


def _load_task_weights(model: Segmenter, entry: zoo.Entry, task: WeightsSpec, path: Path) -> None:
    other_classes = model.num_classes != len(task.labels)
    fresh = load_weights(model, hub.read_tensors(path), str(path), dropped=CLASSIFIER if other_classes else ())
    # after the strict checks: they say what is wrong, the hash only that something is
    weights = dataclasses.replace(task, sha256=hub.verify(path, task.sha256))
    known = _without_labels(flatten(weights)) if other_classes else flatten(weights)
    model.pretrained_cfg = {"name": entry.name, **known, "dropped": fresh}
    if fresh:
        logger.info("freshly initialised in %s: %s", entry.name, ", ".join(fresh))


def _load_checkpoint(model: Segmenter, path: Path) -> None:
    fresh = load_weights(model, hub.read_tensors(path), str(path))
    config_file = path.parent / hub.CONFIG_FILE
    known = flatten(read_manifest(config_file).pretrained_cfg) if config_file.is_file() else {}
    source = {"uri": f"file:{path}", "sha256": hub.sha256_of(path), "dropped": fresh}
    model.pretrained_cfg = {**model.pretrained_cfg, **known, **source}


def _describe(entry: zoo.Entry, config: ModelConfig) -> dict[str, Any]:
    """What is known of a model without its weights: name, input and, for a task's classes, what they mean."""
    preprocess = entry.preprocess if entry.weights else imagenet_preprocess(config.backbone)
    known: dict[str, Any] = {"name": entry.name, **to_dict(preprocess)}
    if entry.weights is not None and len(entry.weights.labels) == config.num_classes:
        known |= {"dataset": entry.weights.dataset, "labels": to_dict(entry.weights.labels)}
    return known


def _without_labels(known: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of weights when their classes, and so their labels and scores, no longer hold."""
    return {name: value for name, value in known.items() if name not in ("labels", "metrics", "published")}


def _recorded_weights(model: Segmenter) -> WeightsSpec:
    """``model.pretrained_cfg`` as a spec, with what must be there filled in."""
    recorded = {name: value for name, value in model.pretrained_cfg.items() if name not in ("name", "dropped")}
    labels = recorded.get("labels")
    if labels is None or len(labels["names"]) != model.num_classes:  # reset_classifier leaves the old ones behind
        names = [f"class {index}" for index in range(model.num_classes)]
        numbered = LabelSpace.from_names(names, ignore_index=max(255, model.num_classes))
        recorded = {**_without_labels(recorded), "labels": to_dict(numbered)}
    weights = unflatten({"dataset": "unknown", **recorded, "uri": f"file:{hub.WEIGHTS_FILE}"})
    return dataclasses.replace(weights, preprocess=resolve_data_config(model))


def _misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``given`` from being ``expected``, one phrase for each kind of fault."""
    common = [name for name in expected if name in given]
    shapes = [
        f"{name} {tuple(given[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in common
        if given[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} {given[name].dtype}, expected {expected[name].dtype}"
        for name in common
        if given[name].is_floating_point() != expected[name].is_floating_point()
    ]
    faults = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of another shape": shapes,
        "of another type": kinds,
        "with NaN or infinity": [name for name in common if not torch.isfinite(given[name]).all()],
    }
    counted = [f"{len(names)} tensors {fault}" for fault, names in faults.items() if names]
    named = [name for names in faults.values() for name in names]
    return [*counted, f"first {abbreviate(named)}"] if named else []


def _class_hint(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    counts = [len(tensors["classifier.bias"]) for tensors in (given, expected) if "classifier.bias" in tensors]
    if len(counts) == 2 and counts[0] != counts[1]:
        return f". It has {counts[0]} classes, the model {counts[1]}: pass num_classes={counts[0]}"
    return ""
