"""Strict, all-or-nothing state-dict loading, and classifiers for other classes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ddsm_zoo.hub.safetensors_io import abbreviate
from ddsm_zoo.utils.files import CheckpointError

ValueT = TypeVar("ValueT")

REFINEMENT = "refinement."
AUXILIARY = "auxiliary."
CLASSIFIER = ("classifier.weight", "classifier.bias")
WRAPPERS = ("module.", "model.")
logger = logging.getLogger(__name__)

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def unwrap_names(state_dict: Mapping[str, ValueT]) -> Mapping[str, ValueT]:
    """Remove the prefixes of DataParallel, DDP, torch.compile, averages and Lightning that all names have."""
    names = {name: name.replace("_orig_mod.", "") for name in state_dict if name != "n_averaged"}
    for _ in range(4):  # wrappers may be nested
        prefix = next((each for each in WRAPPERS if all(name.startswith(each) for name in names.values())), "")
        names = {given: name.removeprefix(prefix) for given, name in names.items()}
    if all(given == name for given, name in names.items()):
        return state_dict
    return {name: state_dict[given] for given, name in names.items()}


def load_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    where: str = "the checkpoint",
    dropped: Collection[str] = (),
    in_chans: int | None = None,
    strict: bool = True,
) -> list[str]:
    """Copy a state dict into ``model`` if it fits exactly, and return the tensors that stay freshly initialized.

    Those are the tensors in ``dropped``, which are not read, and the auxiliary head's if the file has none of it. A
    head in the file that the model does not have is left out. Half precision is converted. If the weights are known to
    take ``in_chans`` channels, other than the model's, their first kernels are spread over the model's channels.
    Without ``strict``, tensors that do not fit are left out, with a warning.

    Raises CheckpointError, before any change, for missing, unexpected and wrongly shaped tensors, NaN and infinity.
    Without ``strict``, only for NaN and infinity, and if nothing fits.
    """
    given = _matching(model, state_dict, where, dropped, in_chans, strict)
    model.load_state_dict(given, strict=False)
    return [name for name in model.state_dict() if name not in given]


def check_fit(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str,
    dropped: Collection[str] = (),
    in_chans: int | None = None,
) -> None:
    """Raise CheckpointError unless the tensors fit ``model``, which may be on the meta device and stays unchanged.

    A config from outside may describe a model larger than any memory. This check requires tensors of that size too.
    """
    _matching(model, tensors, where, dropped, in_chans)


def remap_classifier(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    rows: Mapping[int, int],
    count: int,
    where: str = "the checkpoint",
) -> dict[str, Tensor]:
    """Remap a state dict to the classes of ``model``: class i gets the classifier's row ``rows[i]``, if any.

    The other classes keep the model's own rows. Raises CheckpointError if the classifier does not have ``count`` rows.
    `load_state_dict` checks that the classifier exists.
    """
    moved = dict(state_dict)
    for name in CLASSIFIER:
        fresh, given = model.state_dict()[name].clone(), state_dict.get(name)
        if given is None:
            continue
        expected = (count, *fresh.shape[1:])
        if given.shape != expected:
            raise CheckpointError(
                f"{where} is of another shape: {name} {tuple(given.shape)}, expected {expected}",
                kind="weights-mismatch",
                name=name,
                got=tuple(given.shape),
                expected=expected,
            )
        for new, old in rows.items():
            fresh[new] = given[old]
        moved[name] = fresh
    return moved


def _matching(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    where: str,
    dropped: Collection[str],
    in_chans: int | None,
    strict: bool = True,
) -> dict[str, Tensor]:
    """Select the tensors to copy into the model. Raises CheckpointError."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in dropped}
    given = {name: tensor for name, tensor in state_dict.items() if name not in dropped}
    if not any(name.startswith(AUXILIARY) for name in given):
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(AUXILIARY)}
    elif getattr(model, "auxiliary", None) is None:
        given = {name: tensor for name, tensor in given.items() if not name.startswith(AUXILIARY)}
    if not any(name.startswith(REFINEMENT) for name in given):  # a new one changes nothing: its residual is zero
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(REFINEMENT)}
    config = cast(Any, model).config
    if in_chans not in (None, config.in_chans):
        given = {name: _spread(tensor, in_chans, expected.get(name)) for name, tensor in given.items()}
    if config.norm == "group":  # group norm takes over only the weight and bias of batch norm
        given = {name: tensor for name, tensor in given.items() if not name.endswith(_STATISTICS)}
    problems = mismatches(expected, given)
    if problems and not strict:
        fitting = {name: tensor for name, tensor in given.items() if _fits(tensor, expected.get(name))}
        logger.warning("%s fits only in part, %d tensors are loaded: %s", where, len(fitting), "; ".join(problems))
        given, expected = fitting, {name: expected[name] for name in fitting}
        problems = mismatches(expected, given) if fitting else problems
    if problems:
        raise CheckpointError(
            f"{where} does not fit the model: {'; '.join(problems)}{_class_hint(expected, given)}",
            kind="weights-mismatch",
            name=where,
            got=count_faults(expected, given),
        )
    return given


def _fits(tensor: Tensor, expected: Tensor | None) -> bool:
    if expected is None:
        return False
    return tensor.shape == expected.shape and tensor.is_floating_point() == expected.is_floating_point()


def _spread(tensor: Tensor, in_chans: int | None, expected: Tensor | None) -> Tensor:
    """Convert a kernel on ``in_chans`` channels to the channels of ``expected``, as timm does. Others are unchanged.

    One channel gets the sum of all, so that it means the same as in each of them. More channels repeat the old ones in
    turn, scaled so that the results stay as large.
    """
    if expected is None or tensor.ndim != 4 or expected.ndim != 4 or tensor.shape[1] != in_chans:
        return tensor
    wanted = expected.shape[1]
    if expected.shape != (len(tensor), wanted, *tensor.shape[2:]):
        return tensor
    if wanted == 1:
        return tensor.sum(1, keepdim=True)
    return tensor[:, torch.arange(wanted) % tensor.shape[1]] * (tensor.shape[1] / wanted)


def mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """List the differences between ``given`` and ``expected``, one phrase for each kind."""
    counted = [f"{count} tensors {fault}" for fault, count in count_faults(expected, given).items()]
    named = [name for names in _faults(expected, given).values() for name in names]
    return [*counted, f"first {abbreviate(named)}"] if named else []


def count_faults(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the tensors of each kind of difference that occurs, such as ``{"missing": 2}``."""
    return {fault: len(names) for fault, names in _faults(expected, given).items()}


def _faults(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the tensors of each kind of difference, without the kinds that do not occur."""
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
    return {fault: names for fault, names in faults.items() if names}


def _class_hint(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    counts = [tensors["classifier.bias"].numel() for tensors in (given, expected) if "classifier.bias" in tensors]
    if len(counts) == 2 and counts[0] != counts[1]:
        return f". It has {counts[0]} classes, the model {counts[1]}: pass num_classes={counts[0]}"
    return ""
