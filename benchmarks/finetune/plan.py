"""Settings that all cells share, methods, variants, and the result of a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddsm_zoo.training.recipe import Recipe

OURS = "ddsm-zoo"
DECODERS = {"smp Unet": "Unet", "smp UPerNet": "UPerNet", "smp DeepLabV3+": "DeepLabV3Plus"}
METHODS = (OURS, *DECODERS)
# Changes of the recipe, one at a time. "pretrained" chooses the start as `ddsm_zoo.train` does, "enlarge" resizes.
VARIANTS: dict[str, dict[str, Any]] = {
    "no warm-up": {"warmup_steps": 0},
    "warm-up over a third": {"warmup_steps": 0.33},
    "no average": {"ema_decay": 0.0},
    "average over 50 steps": {"ema_decay": 0.98},
    "half the rates": {"lr": 2e-3, "backbone_lr": 1e-3},
    "twice the rates": {"lr": 8e-3, "backbone_lr": 4e-3},
    "decoder rate 8e-3": {"lr": 8e-3},
    "backbone rate 4e-4": {"backbone_lr": 4e-4},
    "backbone rate 1e-3": {"backbone_lr": 1e-3},
    "backbone rate 4e-3": {"backbone_lr": 4e-3},
    "no Dice": {"dice": 0.0},
    "Dice 1": {"dice": 1.0},
    "Lovasz instead of Dice": {"dice": 0.0, "lovasz": 0.5},
    "no frozen norms": {"frozen_norms": "none"},
    "decoder from random weights": {"pretrained": None},
    "all weights random": {"pretrained": False},
    "stride 4": {"overrides": {}},
    "images enlarged twice": {"enlarge": 2},
}
RATES = (3e-3, 1e-3, 3e-4)  # of the plain loop: the best one on seed 0 is used for all seeds
MULTIPLE = 32  # smp's networks take sides that are multiples of it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings that all cells share. Results of another plan are never mixed with these.

    Attributes:
        seconds: Processor time of the training steps of a cell, by their cost.
        batch: Images per step of the plain loop. The recipe finds its own.
        shrink: Factor by which images and crops are made smaller, for a quicker comparison.
        train: Number of rendered training images; half as many validate.
    """

    seconds: float = 480.0
    batch: int = 8
    shrink: int = 1
    train: int = 40

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the recipe's crops, smaller by ``shrink``, in multiples that smp's networks take."""
        height, width = (max(MULTIPLE, side // self.shrink) for side in Recipe.load("finetune").crop_size)
        return height - height % MULTIPLE, width - width % MULTIPLE


@dataclass(frozen=True, kw_only=True)
class Result:
    """Scores of one cell, in percent, and its cost."""

    miou: float
    iou: list[float]
    epochs: int
    steps: int
    seconds: float  # processor time of all but the scoring
    rate: float
    plan: dict[str, Any]
