"""Whether tensors fit a model, and how they get into it: all of them or none."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.models import Segmenter, build
from ddsm_zoo.tensors import CheckpointError, abbreviate

AUXILIARY = "auxiliary."
CLASSIFIER = ("classifier.weight", "classifier.bias")


def load_weights(
    model: Segmenter, state_dict: Mapping[str, Tensor], where: str = "the checkpoint", dropped: Collection[str] = ()
) -> list[str]:
    """Copy a state dict into ``model`` if it fits exactly, and return the tensors that stay freshly initialised.

    Those are the ones in ``dropped``, which are not read, and the auxiliary head's where the file has none of it; a
    head in the file that the model does not have is left out. Half precision is converted. Raises CheckpointError,
    before anything is changed, for missing, unexpected and wrongly shaped tensors, NaN and infinity.
    """
    given = _matching(model, state_dict, where, dropped)
    model.load_state_dict(given, strict=False)
    return [name for name in model.state_dict() if name not in given]


def check_fit(config: ModelConfig, state_dict: Mapping[str, Tensor], where: str, dropped: Collection[str] = ()) -> None:
    """Raise CheckpointError unless the tensors fit the model that ``config`` describes, which is not built for it.

    A config from outside may describe a model larger than any memory; tensors of its size must have been sent too.
    """
    with torch.device("meta"):
        model = build(config)
    _matching(model, state_dict, where, dropped)


def transplant(model: Segmenter, state_dict: Mapping[str, Tensor], rows: Mapping[int, int]) -> dict[str, Tensor]:
    """The state dict for the classes of ``model``: class i gets the classifier's row ``rows[i]``, if that names one.

    The other classes keep the model's own rows. A classifier that cannot have these rows stays as it is, for
    `load_weights` to refuse.
    """
    moved = dict(state_dict)
    for name in CLASSIFIER:
        fresh, given = model.state_dict()[name].clone(), state_dict.get(name)
        if given is None or given.shape[1:] != fresh.shape[1:] or max(rows.values(), default=0) >= len(given):
            return dict(state_dict)
        for new, old in rows.items():
            fresh[new] = given[old]
        moved[name] = fresh
    return moved


def _matching(
    model: Segmenter, state_dict: Mapping[str, Tensor], where: str, dropped: Collection[str]
) -> dict[str, Tensor]:
    """The tensors to copy into the model. Raises CheckpointError."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in dropped}
    given = {name: tensor for name, tensor in state_dict.items() if name not in dropped}
    if not any(name.startswith(AUXILIARY) for name in given):
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(AUXILIARY)}
    elif model.auxiliary is None:
        given = {name: tensor for name, tensor in given.items() if not name.startswith(AUXILIARY)}
    problems = misfits(expected, given)
    if problems:
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems)}{_class_hint(expected, given)}")
    return given


def misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
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
    counts = [tensors["classifier.bias"].numel() for tensors in (given, expected) if "classifier.bias" in tensors]
    if len(counts) == 2 and counts[0] != counts[1]:
        return f". It has {counts[0]} classes, the model {counts[1]}: pass num_classes={counts[0]}"
    return ""
