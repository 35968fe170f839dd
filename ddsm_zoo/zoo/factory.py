"""Create models by name with strict weight loading, save them and publish them."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ddsm_zoo.config import (
    BACKBONE_ARGS,
    DDSMConfig,
    ModelConfig,
    Preprocess,
    Provenance,
    WeightsSpec,
    from_dict,
    to_dict,
)
from ddsm_zoo.errors import ArgumentError, ArgumentTypeError, UserError
from ddsm_zoo.hub import client
from ddsm_zoo.hub.client import HubError
from ddsm_zoo.hub.config_file import Manifest, read_manifest
from ddsm_zoo.hub.safetensors_io import read_tensors, verify
from ddsm_zoo.hub.state_dict import CLASSIFIER, check_fit, load_state_dict, remap_classifier, unwrap_names
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter, hub_uri, imagenet_preprocess, packaged_weights, saving, unwrap
from ddsm_zoo.utils.files import CheckpointError, LocalFile
from ddsm_zoo.zoo import registry
from ddsm_zoo.zoo.label_matching import match_classes

logger = logging.getLogger(__name__)

# `client.fetch`, with the user's settings
_Fetch = Callable[..., list[LocalFile]]


# Options of timm and smp that have another name or place here
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


class WeightsNotFoundError(UserError, LookupError):
    """Raised for task weights that are not published yet. Names the recipe that makes them and models with weights."""

    kind = "no-task-weights"


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
    """
    if pretrained and checkpoint_path is not None:
        raise ArgumentError(
            "got both pretrained=True and checkpoint_path, expected one source of weights; drop one of them",
            kind="options",
        )
    fetch = _fetcher(cache_dir, token, local_files_only, force_download)
    if "classes" in config_overrides:  # smp's name for it
        if num_classes is not None:
            raise ArgumentTypeError(
                f"got num_classes={num_classes} and classes={config_overrides['classes']}, expected one of them",
                kind="options",
            )
        num_classes = config_overrides.pop("classes")
    label_space = _as_labels(labels, num_classes)
    if label_space is not None:
        num_classes = len(label_space)
    entry, weights_file = _resolve(model_name, config_overrides.pop("backbone", None), pretrained, fetch)
    config = _configure(entry.config, num_classes, in_chans, config_overrides)
    task = entry.weights if pretrained else None
    if task is not None and weights_file is None:
        weights_file, task = _fetch_task_weights(entry, task, fetch)
    if checkpoint_path is not None:
        weights_file = LocalFile(path=client.find_weights(checkpoint_path))
    tensors = None if weights_file is None else unwrap_names(read_tensors(weights_file.path))
    if client.is_uri(model_name):  # only its weights vouch for its size
        skeleton = saving.on_meta(Segmenter, config)
        if strict and task is not None and weights_file is not None and tensors is not None:
            check_fit(skeleton, tensors, _where(weights_file, task), CLASSIFIER, entry.config.in_chans)
        else:
            saving.check_size(skeleton, model_name)
    imagenet = pretrained if pretrained_backbone is None else pretrained_backbone
    backbone_weights = _imagenet_weights(config.backbone, fetch) if imagenet and weights_file is None else None
    model = Segmenter(config, backbone_weights=backbone_weights)
    model.provenance = _describe(entry, config, label_space)
    if weights_file is not None and tensors is not None:
        load = partial(_load_classes, model, tensors, _where(weights_file, task), strict=strict)
        if task is not None:
            _load_task_weights(model, entry, task, weights_file, label_space, load)
        else:
            _load_checkpoint(model, weights_file, label_space, load)
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
    if not client.is_uri(name):
        _require_weights(name, options.get("backbone"))
    return create_model(name, pretrained=True, **options).eval()


def create_trained(model_name: str) -> Segmenter:
    """Create a model with its task weights from a name or an address, ready to predict.

    Raises WeightsNotFoundError for an architecture without task weights, before anything is downloaded, and the errors
    of `create_model`.
    """
    _require_weights(model_name)
    return create_model(model_name, pretrained=True)


def _require_weights(model_name: str, backbone: str | None = None) -> None:
    if _resolve(model_name, backbone, False, client.fetch)[0].weights is None:
        raise WeightsNotFoundError(
            f"{model_name} is an architecture without task weights and cannot predict; "
            f"use a model whose weights exist: {_available()}",
            kind="no-task-weights",
            name=model_name,
        )


def look_up(model_name: str) -> registry.Entry:
    """Look up the architecture, weights and input of a name or an address. Downloads at most a config.

    Raises UnknownModelError, HubError, FileNotFoundError, and ConfigError for an invalid config.
    """
    return _resolve(model_name, None, False, client.fetch)[0]


def resolve_data_config(model: Segmenter) -> Preprocess:
    """Return the image preprocessing of a model.

    Args:
        model: Model created by this package, bare or wrapped.

    Returns:
        The preprocessing that the model's weights were trained with. Without task weights, that of the backbone's
            ImageNet weights.
    """
    return unwrap(model).provenance.preprocess


def describe_weights(model: Segmenter, weights: WeightsSpec) -> None:
    """Record facts about the weights in ``model.provenance``, for example after your own training.

    `save_pretrained` writes them to the config and the model card.

    Args:
        model: Model whose provenance is replaced in place.
        weights: Description of the weights. Its ``labels`` need one name for each class of the model.

    Raises:
        ValueError: The number of labels differs from the model's number of classes.
    """
    if len(weights.labels) != model.num_classes:
        raise ArgumentError(
            f"got {len(weights.labels)} labels for a model of {model.num_classes} classes, expected one each",
            kind="classes-differ",
            got=len(weights.labels),
            expected=model.num_classes,
        )
    model.provenance = Provenance(
        name=model.provenance.name, preprocess=weights.preprocess, labels=weights.labels, weights=weights
    )


def save_pretrained(model: Segmenter, directory: str | os.PathLike[str], *, half: bool = False) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``README.md`` (the model card) to a folder.

    ``local-dir:FOLDER`` loads the same model again. The auxiliary head is left out because only training uses it. The
    files describe the weights by ``model.provenance``.

    Args:
        model: Model to save. torch.compile, DataParallel, DistributedDataParallel and averages such as AveragedModel
            and timm's ModelEmaV3 are unwrapped.
        directory: Target folder. It is created if missing.
        half: Store kernels in 16 bits, for half the size. They load as rounded float32.

    Raises:
        OutputError: A file cannot be written.
        ConfigError: ``model.provenance`` holds an invalid value.
        CheckpointError: The model has tensors that could not be loaded again.
        TypeError: There is no model of this package inside ``model``.
    """
    unwrap(model).save_pretrained(directory, half=half)


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
    """Publish the files of `save_pretrained` on the Hub in one commit.

    Args:
        model: Model to publish, bare or wrapped as for `save_pretrained`.
        repo_id: Repository ``org/name``. It is created if missing.
        private: Visibility of a new repository. Unless given, the Hub's default.
        revision: Branch to commit to. Unless given, main.
        create_pr: Open a pull request instead of committing to the branch.
        token: Access token. Unless given, the Hub client's own.
        half: Store kernels in 16 bits, for half the size.

    Returns:
        The ``hf-hub:`` address of the commit. `create_model` takes it and always loads exactly these weights.

    Raises:
        HubError: The upload failed.
        ValueError: ``repo_id`` is malformed, or options exclude each other.
        Exception: Anything that `save_pretrained` raises.
    """
    return unwrap(model).push_to_hub(
        repo_id, private=private, revision=revision, create_pr=create_pr, token=token, half=half
    )


def _fetcher(
    cache_dir: str | os.PathLike[str] | None, token: str | bool | None, local_files_only: bool, force_download: bool
) -> _Fetch:
    """Return `client.fetch` with the user's settings."""
    return partial(
        client.fetch,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )


def _resolve(
    name: str, backbone: str | None, pretrained: bool, fetch: _Fetch
) -> tuple[registry.Entry, LocalFile | None]:
    """Return the entry for a name or an address, and for an address its weights file if ``pretrained``."""
    if not client.is_uri(name):
        if "/" in name or ":" in name:
            raise registry.UnknownModelError(
                f"{client.public_uri(name)[:80]!r} names no model, expected a name of `ddsm-zoo list`, "
                "local-dir:FOLDER or hf-hub:ORG/NAME; pass a file of weights as checkpoint_path",
                name=client.public_uri(name),
            )
        return registry.find(name, backbone), None
    wanted = (client.CONFIG_FILE, client.WEIGHTS_FILE) if pretrained else (client.CONFIG_FILE,)
    files = fetch(name, *wanted)
    manifest = saving.read_saved(files[0].path)
    weights = dataclasses.replace(manifest.pretrained_cfg, uri=name)
    entry = registry.Entry(
        name=manifest.architecture, config=manifest.model_args, weights=weights, preprocess=weights.preprocess
    )
    return registry.with_backbone(entry, backbone), files[1] if pretrained else None


def _configure(
    config: ModelConfig, num_classes: int | None, in_chans: int, overrides: Mapping[str, Any]
) -> ModelConfig:
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


def _imagenet_weights(timm_name: str, fetch: _Fetch) -> Mapping[str, Tensor]:
    logger.info("ImageNet weights for %s; decoder and classifier are freshly initialized", timm_name)
    packaged = packaged_weights(timm_name)
    if packaged is not None:
        return packaged
    (file,) = fetch(hub_uri(timm_name), client.WEIGHTS_FILE)
    return read_tensors(file.path)


def _fetch_task_weights(entry: registry.Entry, task: WeightsSpec, fetch: _Fetch) -> tuple[LocalFile, WeightsSpec]:
    """Download the task weights, and describe them as their repository on the Hub does."""
    hosted = task.uri.startswith("hf-hub:")
    wanted = (client.CONFIG_FILE, client.WEIGHTS_FILE) if hosted else (client.WEIGHTS_FILE,)
    try:
        *config, file = fetch(task.uri, *wanted, sha256=task.sha256)
    except HubError as error:
        if entry.published:
            raise
        raise WeightsNotFoundError(
            f"the weights of {entry.name} are not published yet ({error}); train them with recipe {task.recipe}, "
            f"or use a model whose weights exist: {_available()}",
            kind="weights-not-published",
            name=entry.name,
        ) from error
    return file, _as_published(task, saving.read_saved(config[0].path)) if config else task


def _as_published(task: WeightsSpec, manifest: Manifest) -> WeightsSpec:
    """Return what the repository's own config says of the weights. The hash and the scores of a pin come first."""
    own = manifest.pretrained_cfg
    if len(own.labels) != len(task.labels):
        raise CheckpointError(
            f"{task.uri} holds a model of {len(own.labels)} classes, expected the {len(task.labels)} of {task.dataset}",
            kind="classes-differ",
            got=len(own.labels),
            expected=len(task.labels),
        )
    return dataclasses.replace(
        own,
        uri=task.uri,
        sha256=task.sha256 or own.sha256,
        metrics=task.metrics or own.metrics,
        published=task.published,
        recipe=own.recipe or task.recipe,
    )


def _where(file: LocalFile, task: WeightsSpec | None) -> str:
    """Name a weights file in errors: by the address that was asked for, not by its copy in the cache."""
    remote = task is not None and task.uri.startswith(("hf-hub:", "https:"))
    return client.public_uri(task.uri) if remote and task is not None else str(file.path)


def _available() -> str:
    return ", ".join(registry.list_pretrained()) or "none so far"


# Load the tensors: the first argument names the weights' classes, the second the model's
_Load = Callable[..., "_Loaded"]


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """Outcome of loading the classifier. The fields are those of `Provenance`."""

    fresh: tuple[str, ...]
    reused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reinitialized: tuple[str, ...] = ()


def _load_task_weights(
    model: Segmenter, entry: registry.Entry, task: WeightsSpec, file: LocalFile, labels: LabelSpace | None, load: _Load
) -> None:
    loaded = load(task.labels, labels, entry.config.in_chans)
    # after the strict checks: their messages name the problem, a hash mismatch does not
    known = dataclasses.replace(
        task,
        sha256=verify(file, task.sha256),
        # copies, because all models share those of the table
        metrics=dict(task.metrics),
        published=dict(task.published),
        taps_on_map=dict(task.taps_on_map),
    )
    if _reads_otherwise(model.config, entry.config):
        known = known.without_scores()
    model.provenance = _provenance(entry.name, task.preprocess, known, labels, loaded)


def _load_checkpoint(model: Segmenter, file: LocalFile, labels: LabelSpace | None, load: _Load) -> None:
    path = file.path
    config_file = path.with_name(client.CONFIG_FILE)
    # a config describes only the weights file that was saved with it
    described = path.name == client.WEIGHTS_FILE and config_file.is_file()
    manifest = read_manifest(config_file) if described else None
    recorded = None if manifest is None else manifest.pretrained_cfg
    loaded = load(recorded.labels if recorded is not None and labels is not None else None, labels)
    known, preprocess = recorded, model.provenance.preprocess
    if known is None:
        # the weights name no classes, so the model keeps its own labels
        names = model.provenance.labels or saving.numbered_labels(model.num_classes)
        known = WeightsSpec(uri="", dataset="unknown", labels=names)
    else:
        preprocess = known.preprocess
    known = dataclasses.replace(known, uri=f"file:{path}", sha256=verify(file, known.sha256))
    if manifest is not None and _reads_otherwise(model.config, manifest.model_args):
        known = known.without_scores()
    if recorded is None:
        model.provenance = dataclasses.replace(
            model.provenance,
            labels=labels or model.provenance.labels,
            weights=known,
            fresh=loaded.fresh,
            reused=loaded.reused,
            reinitialized=loaded.reinitialized,
        )
    else:
        model.provenance = _provenance(model.provenance.name, preprocess, known, labels, loaded)


def _reads_otherwise(config: ModelConfig, own: ModelConfig) -> bool:
    """Return True if weights of a model built by ``own`` fit ``config`` but compute something else there."""
    return (config.in_chans, config.norm) != (own.in_chans, own.norm)


def _provenance(
    name: str, preprocess: Preprocess, weights: WeightsSpec, labels: LabelSpace | None, loaded: _Loaded
) -> Provenance:
    """Build the provenance of loaded weights.

    ``labels`` are the model's classes. None keeps the labels of the weights where they still hold.
    """
    own = None if set(CLASSIFIER) & set(loaded.fresh) else weights.labels
    return Provenance(
        name=name,
        preprocess=preprocess,
        labels=labels or own,
        weights=weights if own is not None else weights.without_scores(),
        fresh=loaded.fresh,
        reused=loaded.reused,
        reinitialized=loaded.reinitialized,
    )


def _load_classes(
    model: Segmenter,
    tensors: Mapping[str, Tensor],
    where: str,
    known: LabelSpace | None,
    labels: LabelSpace | None,
    in_chans: int | None = None,
    *,
    strict: bool = True,
) -> _Loaded:
    """Load weights with the classes ``known`` into a model with the classes ``labels``.

    None stands for unnamed classes. The weights' classes are then the model's, in the same order.
    """
    if labels is None:
        other = known is not None and len(known) != model.num_classes
        fresh = load_state_dict(model, tensors, where, CLASSIFIER if other else (), in_chans, strict)
        if fresh:
            logger.info("freshly initialized: %s", ", ".join(fresh))
        return _Loaded(tuple(fresh))
    old_names = labels.names if known is None else known.names
    rows = match_classes(labels.names, old_names)
    moved = remap_classifier(model, tensors, rows, len(old_names), where)
    fresh = load_state_dict(model, moved, where, () if rows else CLASSIFIER, in_chans, strict)
    reused = {labels.names[new]: old_names[old] for new, old in rows.items()}
    rest = tuple(name for name in labels.names if name not in reused)
    logger.info(
        "classes that keep their weights: %s; freshly initialized: %s",
        ", ".join(new if new == old else f"{new} from {old}" for new, old in reused.items()) or "none",
        ", ".join(rest) or "none",
    )
    return _Loaded(tuple(fresh), reused, rest)


def _as_labels(labels: LabelSpace | Sequence[str] | None, num_classes: int | None) -> LabelSpace | None:
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


def _describe(entry: registry.Entry, config: ModelConfig, labels: LabelSpace | None) -> Provenance:
    """Build the provenance of a model before any weights are loaded: name, input and, if known, labels."""
    preprocess = entry.preprocess or imagenet_preprocess(config.backbone)
    if labels is not None:
        return Provenance(name=entry.name, preprocess=preprocess, labels=labels, reinitialized=labels.names)
    named = entry.weights is not None and len(entry.weights.labels) == config.num_classes
    return Provenance(
        name=entry.name, preprocess=preprocess, labels=entry.weights.labels if named and entry.weights else None
    )
