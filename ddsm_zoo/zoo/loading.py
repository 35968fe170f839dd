"""Loading of weights into a model: classes matched by name, and the provenance that follows from it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping

from torch import Tensor

from ddsm_zoo.config import ModelConfig, Preprocess, Provenance, WeightsSpec
from ddsm_zoo.hub.config_file import read_manifest
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.hub.safetensors_io import verify
from ddsm_zoo.hub.state_dict import CLASSIFIER, load_state_dict, remap_classifier
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter, saving
from ddsm_zoo.utils.files import LocalFile
from ddsm_zoo.zoo import table
from ddsm_zoo.zoo.label_matching import match_classes

logger = logging.getLogger(__name__)

# Function that loads the tensors, from the label spaces of the weights and of the model
_Load = Callable[..., "_Loaded"]


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """Outcome of loading the classifier. The fields are those of `Provenance`."""

    fresh: tuple[str, ...]
    reused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reinitialized: tuple[str, ...] = ()


def load_task_weights(
    model: Segmenter, entry: table.Entry, task: WeightsSpec, file: LocalFile, labels: LabelSpace | None, load: _Load
) -> None:
    """Load downloaded task weights into ``model``, and record their provenance."""
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


def load_checkpoint(model: Segmenter, file: LocalFile, labels: LabelSpace | None, load: _Load) -> None:
    """Load the file of ``checkpoint_path`` into ``model``, and record its provenance."""
    path = file.path
    config_file = path.with_name(CONFIG_FILE)
    # a config describes only the weights file that was saved with it
    described = path.name == WEIGHTS_FILE and config_file.is_file()
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


def load_classes(
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
