"""Models of the arms, which begin with the same value in every tensor that they have in common."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.evidence.fusions import register_controls
from benchmarks.evidence.matrix import Arm, Matrix
from ddsm_zoo import create_model
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils.plain_data import ConfigError


def build_arm(matrix: Matrix, name: str, labels: LabelSpace, seed: int) -> Segmenter:
    """The model of one arm at the start of its training.

    Constructors draw random numbers one after the other, so two arms with the same seed would differ in whatever is
    built after the first layer that only one of them has. Each tensor therefore has the value that the first arm of
    the matrix that has a tensor of this name and shape draws for it.

    Raises what `create_model` raises.
    """
    register_controls()
    model = _build(matrix.arms[name], labels, seed, weights=matrix.backbone_weights)
    mine = _tensors(model)
    # The backbone's ImageNet weights are equal already. Without them a model may draw other numbers, so the arm itself
    # is among those that are built again.
    missing = {key for key in mine if not (matrix.backbone_weights and key[0].startswith("backbone."))}
    for donor in list(matrix.arms)[: list(matrix.arms).index(name) + 1]:
        theirs = _tensors(_build(matrix.arms[donor], labels, seed, weights=False))
        for key in missing & theirs.keys():
            mine[key].copy_(theirs[key])
        missing -= theirs.keys()
    return model


def check_arm(name: str, arm: Arm) -> None:
    """Raise ConfigError for an arm whose model cannot be built, before anything is trained."""
    register_controls()
    try:
        with torch.device("meta"):
            create_model(arm.model, pretrained_backbone=False, **arm.overrides)
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"arm {name} cannot be built: {error}") from error


def _build(arm: Arm, labels: LabelSpace, seed: int, *, weights: bool) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return create_model(arm.model, labels=labels, pretrained_backbone=weights, **arm.overrides)


def _tensors(model: nn.Module) -> dict[tuple[str, tuple[int, ...]], torch.Tensor]:
    """Tensors of the state dict by name and shape."""
    return {(name, tuple(tensor.shape)): tensor for name, tensor in model.state_dict().items()}
