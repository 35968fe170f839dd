"""Wrap any model (zoo name, ``nn.Module`` or function) as a scoring function for evaluation."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddsm_zoo.config import Preprocess
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.hub.address import public_uri
from ddsm_zoo.hub.safetensors_io import pack_tensors
from ddsm_zoo.hub.state_dict import AUXILIARY
from ddsm_zoo.inference.modes import Predict, full_image
from ddsm_zoo.inference.precision import Precision, settled_precision
from ddsm_zoo.inference.preparation import choose_device, model_labels, model_threshold, prepare, recorded_labels
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.layers import resize
from ddsm_zoo.models import Segmenter, as_segmenter, unwrap
from ddsm_zoo.utils.plain_data import to_dict
from ddsm_zoo.zoo.factory import resolve_data_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """Scoring function with the preprocessing it expects and the name, address and hash of its weights.

    ``threshold`` is that of `predict_ids`, None for several classes.
    """

    predict: Predict
    preprocess: Preprocess
    name: str
    uri: str | None = None
    sha256: str | None = None
    threshold: float | None = None
    module: nn.Module | None = None
    precision: Precision = "fp32"

    def record(self) -> dict[str, Any]:
        """Return the part of a result that identifies the model."""
        done = {
            key: value for key, value in to_dict(self.preprocess).items() if key != "size"
        }  # evaluation ignores size
        binary = {} if self.threshold is None else {"threshold": self.threshold}
        precision = settled_precision(self.module, self.precision)
        half = {} if precision == "fp32" else {"precision": precision}
        weights = {"uri": self.uri, "sha256": self.sha256}
        return {"model": self.name, "weights": weights, "preprocess": done, **binary, **half}


def wrap_model(
    model: str | Predict,
    labels: LabelSpace,
    device: str | torch.device | None,
    preprocess: Preprocess | None,
    threshold: float | None = None,
    precision: Precision = "fp32",
) -> ScoredModel:
    """Wrap the pretrained model of a name, a model, or any module or function from images to scores of the ``labels``.

    A model of this package inside DataParallel, DistributedDataParallel, torch.compile or an average counts as itself.

    ``preprocess`` defaults to that of the model's training or, if unknown, to ImageNet's. ``threshold`` defaults to
    that of the model's weights. The scores have the resolution of the images. Raises the errors of `create_model`, and
    ValueError for a model with other classes, an unknown precision or one for a function, which computes as it likes.
    ``predict`` raises ValueError if the model does not return a tensor of scores.
    """
    uri: str | None = None
    sha256: str | None = None
    module: nn.Module | None = None
    own = model if isinstance(model, str) else as_segmenter(model)
    if own is not None:
        module = segmenter = prepare(own, device)
        _check_classes(segmenter, labels)
        threshold = model_threshold(segmenter, threshold)
        known = segmenter.provenance
        predict, preprocess = full_image(segmenter, precision), preprocess or resolve_data_config(segmenter)
        if isinstance(model, str):
            assert known.weights is not None  # `prepare` rejects a model without weights
            name, uri, sha256 = model, public_uri(known.weights.uri), known.weights.sha256
        else:
            name, sha256 = known.name, _hash_of(unwrap(segmenter))
    elif isinstance(model, nn.Module):
        name, sha256 = type(model).__name__, _hash_of(model)
        module = model.to(choose_device(device))
        predict = _logits_expected(full_image(module, precision))
    elif precision != "fp32":
        raise ArgumentError(
            f"precision is {precision!r} for a function, expected a model or precision='fp32'",
            kind="options",
            name="precision",
            got=precision,
            expected="fp32",
        )
    else:
        assert not isinstance(model, str)
        name = getattr(model, "__name__", type(model).__name__)
        predict = _logits_expected(_on(choose_device(device), model))
    return ScoredModel(
        predict=_checked(predict),
        preprocess=preprocess or Preprocess(),
        name=name,
        uri=uri,
        sha256=sha256,
        threshold=threshold,
        module=module,
        precision=precision,
    )


def _on(device: torch.device, predict: Predict) -> Predict:
    return lambda image: predict(image.to(device))


def _logits_expected(predict: Predict) -> Predict:
    """Warn once if the scores of a single class look like probabilities, which all exceed the logit 0."""
    warned = False

    def predict_scores(image: Tensor) -> Tensor:
        nonlocal warned
        scores = predict(image)
        single = isinstance(scores, Tensor) and scores.ndim == 4 and scores.shape[1] == 1 and scores.numel() > 0
        if single and not warned and scores.min() >= 0 and scores.max() <= 1:
            warned = True
            logger.warning(
                "the scores of a single class lie between 0 and 1 and are read as logits; if they are probabilities, "
                "return their torch.logit"
            )
        return scores

    return predict_scores


def _checked(predict: Predict) -> Predict:
    def predict_scores(image: Tensor) -> Tensor:
        scores: object = predict(image)
        if not isinstance(scores, Tensor) or scores.ndim != 4 or len(scores) != len(image):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ArgumentError(
                f"the model gives {got} for images {tuple(image.shape)}, expected a tensor (N, K, H, W) of scores; "
                "evaluate a function that picks it out",
                kind="array",
                got=got,
            )
        return resize(scores, (image.shape[-2], image.shape[-1]))

    return predict_scores


def _hash_of(model: nn.Module) -> str:
    """Return the SHA-256 of the file that the current weights would be saved as."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(AUXILIARY)}
    # clones, because safetensors refuses tensors that share their memory
    return hashlib.sha256(pack_tensors({name: tensor.clone() for name, tensor in state.items()})).hexdigest()


def _check_classes(model: Segmenter, labels: LabelSpace) -> None:
    """Raise ValueError for other classes. A single class fits two, whatever its background is called there."""
    own, known = model_labels(model), labels.in_masks
    if len(own) != len(known):
        listed = ", ".join(labels.names[:3]) + (", ..." if len(labels) > 3 else "")
        raise ArgumentError(
            f"the model predicts {model.num_classes} classes and the data has {len(labels)} ({listed}), expected the "
            "same; "
            "fine-tune the model on this data (ddsm-zoo train --pretrained), or score it on data with its classes",
            kind="classes-differ",
            got=model.num_classes,
            expected=len(labels),
        )
    if recorded_labels(model) is None:
        return
    binary = 1 in (model.num_classes, len(labels))
    for index, (ours, theirs) in enumerate(zip(own.names, known.names, strict=True)):
        if ours.casefold() != theirs.casefold() and not (binary and index == 0):
            raise ArgumentError(
                f"class {index} is {ours!r} for the model and {theirs!r} in the data, expected the same classes in the "
                "same order",
                kind="classes-differ",
                got=ours,
                expected=theirs,
            )
