"""Models made ready to predict, and what their weights record: the device, the labels, the threshold."""

from __future__ import annotations

import torch

from ddsm_zoo.config import check_threshold
from ddsm_zoo.errors import ArgumentError, ArgumentTypeError
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter, as_segmenter, require_rgb
from ddsm_zoo.models.saving import numbered_labels
from ddsm_zoo.zoo.factory import create_trained


def model_labels(model: Segmenter) -> LabelSpace:
    """Return the labels of the class ids in masks. Classes are numbered if the weights have no labels."""
    return (recorded_labels(model) or numbered_labels(model.num_classes)).in_masks


def model_threshold(model: Segmenter, threshold: float | None = None) -> float | None:
    """Return the threshold of a model of a single class: the given one, else that of its weights. None for others.

    Raises ConfigError for a threshold that is not between 0 and 1, or is given for several classes.
    """
    if threshold is not None:
        check_threshold(threshold, model.num_classes)
        return float(threshold)
    return model.provenance.threshold if model.num_classes == 1 else None


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device of that name. None takes a GPU if there is one.

    Raises ValueError for an unavailable device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Allocating is the only check that works for every kind of device.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(
            f"device {str(device)!r} cannot be used here, expected cpu, or cuda where PyTorch finds a GPU; leave "
            "the device out to use the best one",
            kind="device",
            name="device",
            got=str(device),
            expected="cpu or cuda",
        ) from error


def prepare(model: str | Segmenter, device: str | torch.device | None) -> Segmenter:
    """Move a model to its device, ready to predict RGB images. A name loads the pretrained model.

    Your own model keeps its layers, and is unwrapped by `as_segmenter`. A model created here gets its batch norms
    folded, which is faster and changes the logits only by rounding. Raises TypeError for a model of another library.
    """
    chosen = choose_device(device)
    if isinstance(model, str):
        model = create_trained(model).fuse()
    else:
        own = as_segmenter(model)
        if own is None:
            got, expected = type(model).__name__, "a model of this package or a name"
            raise ArgumentTypeError(f"got a {got}, expected {expected}", name="model", got=got, expected=expected)
        model = own
    require_rgb(model)
    return model.to(chosen).eval()


def recorded_labels(model: Segmenter) -> LabelSpace | None:
    """Return the labels that the weights record, None if they record none."""
    labels = model.provenance.labels
    return labels if labels is not None and len(labels) == model.num_classes else None
