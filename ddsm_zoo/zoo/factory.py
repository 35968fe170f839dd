"""From a name to a model and from a model to files: look up, build, load strictly, save, publish."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddsm_zoo.config import ConfigError, DDSMConfig, ModelConfig, Preprocess, WeightsSpec, from_dict, to_dict
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter, build, hub_address, imagenet_preprocess, packaged_weights
from ddsm_zoo.zoo import hub, registry
from ddsm_zoo.zoo.hub import HubError
from ddsm_zoo.zoo.model_card import render_card
from ddsm_zoo.zoo.model_config import Manifest, flatten, preprocess_of, read_manifest, render_manifest, unflatten
from ddsm_zoo.zoo.safetensors_io import CheckpointError, pack_tensors, read_tensors, verify
from ddsm_zoo.zoo.state_dict import AUXILIARY, CLASSIFIER, check_fit, check_size, load_classes

# What ``pretrained_cfg`` says of one model's making and saved files do not: weights arrive complete.
_TRANSIENT = ("name", "dropped", "kept_classes", "fresh_classes", "imported")

logger = logging.getLogger(__name__)


class WeightsNotFoundError(LookupError):
    """Task weights that nobody has published yet; names the recipe that makes them and models that have weights."""


def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    labels: LabelSpace | Sequence[str] | None = None,
    in_chans: int = 3,
    pretrained_backbone: bool | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **config_overrides: Any,
) -> Segmenter:
    """Build a model by its name in the zoo, ``hf-hub:org/repo[@revision]`` or ``local-dir:FOLDER``.

    ``pretrained`` loads the task weights; an architecture that has none gets its backbone's ImageNet weights.
    ``num_classes`` other than the weights' keeps everything but the classifier, which is freshly initialised and
    named in ``pretrained_cfg["dropped"]``. ``labels``, the names of your classes, keep the classifier's rows too for
    the classes that the weights know, by these names or others (`match_classes`): ``pretrained_cfg["kept_classes"]``
    has theirs by yours, ``["fresh_classes"]`` the others, freshly initialised. ``in_chans`` 3 means as configured;
    another number spreads the weights' first kernels over these channels, as timm does.
    ``pretrained_backbone`` forces or forbids the ImageNet weights; task weights and a ``checkpoint_path`` bring their
    own backbone, so that nothing is fetched for it then. ``checkpoint_path`` is a safetensors file, a saved model's
    folder or a training run's.
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
    label_space = _as_labels(labels, num_classes)
    if label_space is not None:
        num_classes = len(label_space)
    entry, weights_file = _resolve(model_name, config_overrides.pop("backbone", None), pretrained, cache_dir)
    config = _configure(entry.config, num_classes, in_chans, config_overrides)
    task = entry.weights if pretrained else None
    if task is not None and weights_file is None:
        weights_file = _fetch_task_weights(entry, task, cache_dir)
    if checkpoint_path is not None:
        weights_file = hub.find_weights(checkpoint_path)
    if hub.is_uri(model_name) and task is not None and weights_file is not None:
        check_fit(config, read_tensors(weights_file), str(weights_file), CLASSIFIER, entry.config.in_chans)
    elif hub.is_uri(model_name):
        check_size(config, model_name)
    imagenet = pretrained if pretrained_backbone is None else pretrained_backbone
    backbone_weights = _imagenet_weights(config.backbone, cache_dir) if imagenet and weights_file is None else None
    model = build(config, backbone_weights=backbone_weights)
    model.pretrained_cfg = _describe(entry, config, label_space)
    if task is not None and weights_file is not None:
        _load_task_weights(model, entry, task, weights_file, label_space)
    elif weights_file is not None:
        _load_checkpoint(model, weights_file, label_space)
    return model


def from_pretrained(source: str | os.PathLike[str], *, revision: str | None = None, **options: Any) -> Segmenter:
    """The model in a folder, at ``org/name`` on the Hub, or of a name in the zoo, with its weights, ready to predict.

    What `Segmenter.from_pretrained` does. ``options`` are those of `create_model`, which says what is raised.
    """
    name = os.fspath(source)
    if not hub.is_uri(name) and Path(name).expanduser().is_dir():
        name = f"local-dir:{name}"
    elif not hub.is_uri(name) and "/" in name:
        name = f"hf-hub:{name}"
    if revision is not None:
        if not name.startswith("hf-hub:") or "@" in name:
            raise ValueError(f"{name!r} takes no revision={revision!r}, expected a repository org/name beside it")
        name = f"{name}@{revision}"
    return create_model(name, pretrained=True, **options).eval()


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


def look_up(model_name: str) -> registry.Entry:
    """What a name or an address stands for: architecture, weights, input. Only a config is fetched.

    Raises UnknownModelError, HubError, FileNotFoundError, and ConfigError for a config that cannot be.
    """
    return _resolve(model_name, None, False, None)[0]


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
    OutputError, ConfigError for a ``pretrained_cfg`` that cannot be, and CheckpointError for tensors that no model
    could load again.
    """
    hub.write_files(directory, pack(model, half=half))


def push_to_hub(
    model: Segmenter,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    half: bool = False,
) -> str:
    """Publish what `save_pretrained` writes as ``org/name`` on the Hub, in one commit; the ``hf-hub:`` address of it.

    That address, which `create_model` takes, names the commit: it will always give these weights. ``revision`` is a
    branch, ``create_pr`` opens a pull request instead. Raises what `hub.push` and `save_pretrained` raise.
    """
    files = pack(model, half=half, address=f"hf-hub:{repo_id}")
    return hub.push(repo_id, files, private=private, revision=revision, create_pr=create_pr, token=token)


def pack(model: Segmenter, *, half: bool = False, address: str = "local-dir:PATH") -> dict[str, bytes]:
    """The content of a saved model's files by name, ``config.json`` last: it holds the hash of the weights.

    ``address`` is where the card tells its reader to find them.
    """
    if model.fused:
        raise CheckpointError("the model was fused for inference and cannot be saved; save it before fuse()")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(AUXILIARY)}
    if half:
        # not what has one value per channel: it is small, and a variance may lie outside the range of 16 bits
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    config = dataclasses.replace(model.config, num_classes=model.num_classes, auxiliary=False)
    check_fit(config, tensors, "what is to be saved")
    content = pack_tensors(tensors)
    weights = _recorded_weights(model)
    manifest = Manifest(
        architecture=registry.architecture_name(model.config, model.pretrained_cfg.get("name")),
        num_classes=model.num_classes,
        label_names=weights.labels.names,
        model_args=config,
        pretrained_cfg=dataclasses.replace(weights, sha256=hashlib.sha256(content).hexdigest()),
    )
    return {
        hub.WEIGHTS_FILE: content,
        hub.CARD_FILE: render_card(manifest, address).encode(),
        hub.CONFIG_FILE: render_manifest(manifest).encode(),
    }


def _resolve(
    name: str, backbone: str | None, pretrained: bool, cache_dir: str | os.PathLike[str] | None
) -> tuple[registry.Entry, Path | None]:
    """What the name stands for, and the weights that came with it from an address."""
    if not hub.is_uri(name):
        if "/" in name or ":" in name:
            raise registry.UnknownModelError(
                f"{hub.public_address(name)[:80]!r} names no model; a folder is local-dir:FOLDER, a repository "
                "hf-hub:ORG/NAME, and a file of weights is the checkpoint_path of a model"
            )
        return registry.find(name, backbone), None
    wanted = (hub.CONFIG_FILE, hub.WEIGHTS_FILE) if pretrained else (hub.CONFIG_FILE,)
    files = hub.fetch(name, *wanted, cache_dir=cache_dir)
    manifest = read_manifest(files[0])
    if manifest.architecture != registry.architecture_name(manifest.model_args, manifest.architecture):
        raise ConfigError(
            f"{files[0]}.architecture is {manifest.architecture[:80]!r}, expected a name that begins with "
            f"{registry.architecture_name(manifest.model_args)}, which is what its model_args describe"
        )
    weights = dataclasses.replace(manifest.pretrained_cfg, uri=name)
    entry = registry.Entry(
        name=manifest.architecture, config=manifest.model_args, weights=weights, preprocess=weights.preprocess
    )
    return registry.with_backbone(entry, backbone), files[1] if pretrained else None


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
    return read_tensors(path)


def _fetch_task_weights(entry: registry.Entry, task: WeightsSpec, cache_dir: str | os.PathLike[str] | None) -> Path:
    try:
        (path,) = hub.fetch(task.uri, hub.WEIGHTS_FILE, cache_dir=cache_dir, sha256=task.sha256)
    except HubError as error:
        if entry.published:
            raise
        raise WeightsNotFoundError(
            f"the weights of {entry.name} are not published yet ({error}); train them with recipe {task.recipe}, "
            f"or use a model whose weights exist: {_available()}"
        ) from error
    return path


def _available() -> str:
    return ", ".join(registry.list_pretrained()) or "none so far"


def _load_task_weights(
    model: Segmenter, entry: registry.Entry, task: WeightsSpec, path: Path, labels: LabelSpace | None
) -> None:
    classifier = load_classes(model, read_tensors(path), str(path), task.labels, labels, entry.config.in_chans)
    # after the strict checks: they say what is wrong, the hash only that something is
    known = flatten(dataclasses.replace(task, sha256=verify(path, task.sha256)))
    if (model.config.in_chans, model.config.norm) != (entry.config.in_chans, entry.config.norm):
        known |= {"metrics": {}, "published": {}}
    if not _same_classes(classifier, task.labels, labels):
        known = _without_labels(known)
    model.pretrained_cfg = {"name": entry.name, **known, **classifier}
    if labels is not None:
        model.pretrained_cfg["labels"] = to_dict(labels)


def _load_checkpoint(model: Segmenter, path: Path, labels: LabelSpace | None) -> None:
    config_file = path.with_name(hub.CONFIG_FILE)
    # it describes the file that was saved with it, and no other one in its folder
    described = path.name == hub.WEIGHTS_FILE and config_file.is_file()
    recorded = read_manifest(config_file).pretrained_cfg if described else None
    names = recorded.labels if recorded is not None and labels is not None else None
    classifier = load_classes(model, read_tensors(path), str(path), names, labels)
    known = {} if recorded is None else flatten(recorded)
    if recorded is not None and not _same_classes(classifier, recorded.labels, labels):
        known = _without_labels(known)
    sha256 = verify(path, None if recorded is None else recorded.sha256)
    source = {"uri": f"file:{path}", "sha256": sha256, **classifier}
    model.pretrained_cfg = {**model.pretrained_cfg, **known, **source}
    if labels is not None:
        model.pretrained_cfg["labels"] = to_dict(labels)


def _same_classes(classifier: Mapping[str, Any], known: LabelSpace, labels: LabelSpace | None) -> bool:
    """Whether labels and scores of weights with the classes ``known`` still hold after `load_classes`."""
    renamed = labels is not None and labels.names != known.names
    return not renamed and not set(CLASSIFIER) & set(classifier["dropped"])


def _as_labels(labels: LabelSpace | Sequence[str] | None, num_classes: int | None) -> LabelSpace | None:
    if labels is None:
        return None
    if not isinstance(labels, LabelSpace):
        if isinstance(labels, str) or not all(isinstance(name, str) for name in labels):
            raise TypeError(f"labels is {labels!r}, expected a LabelSpace or a list of class names")
        labels = LabelSpace.from_names(labels, ignore_index=max(255, len(labels)))
    if num_classes not in (None, len(labels)):
        raise ValueError(f"got {len(labels)} labels and num_classes={num_classes}, expected one label for each class")
    return labels


def _describe(entry: registry.Entry, config: ModelConfig, labels: LabelSpace | None) -> dict[str, Any]:
    """What is known of a model without its weights: name, input and, where somebody says, what its classes mean."""
    preprocess = entry.preprocess if entry.weights else imagenet_preprocess(config.backbone)
    known: dict[str, Any] = {"name": entry.name, **to_dict(preprocess)}
    if labels is not None:
        known |= {"labels": to_dict(labels), "kept_classes": {}, "fresh_classes": list(labels.names)}
    elif entry.weights is not None and len(entry.weights.labels) == config.num_classes:
        known |= {"dataset": entry.weights.dataset, "labels": to_dict(entry.weights.labels)}
    return known


def _without_labels(known: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of weights when their classes, and so their labels and scores, no longer hold."""
    return {name: value for name, value in known.items() if name not in ("labels", "metrics", "published")}


def _recorded_weights(model: Segmenter) -> WeightsSpec:
    """``model.pretrained_cfg`` as a spec, with what must be there filled in."""
    recorded = {name: value for name, value in model.pretrained_cfg.items() if name not in _TRANSIENT}
    labels = recorded.get("labels")
    if labels is None or len(labels["names"]) != model.num_classes:  # reset_classifier leaves the old ones behind
        names = [f"class {index}" for index in range(model.num_classes)]
        numbered = LabelSpace.from_names(names, ignore_index=max(255, model.num_classes))
        recorded = {**_without_labels(recorded), "labels": to_dict(numbered)}
    weights = unflatten({"dataset": "unknown", **recorded, "uri": f"file:{hub.WEIGHTS_FILE}"})
    return dataclasses.replace(weights, preprocess=resolve_data_config(model))
