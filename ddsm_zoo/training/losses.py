"""Losses for dense prediction. Pixels with the ignore index never count."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.plain_data import ConfigError


class SegmentationLoss(nn.Module):
    """Cross-entropy, plus ``dice`` x `dice_loss`, plus ``lovasz`` x `lovasz_softmax_loss`.

    ``class_weights`` (K,) weigh each pixel of the cross-entropy by its class. With ``ohem`` above 0, only the pixels of
    `hard_targets` count in it. Neither affects the other two losses.

    A single class, K = 1, has targets 0 (background) and 1. The cross-entropy is then the binary one of a sigmoid, with
    two ``class_weights``, and the other two losses are those of the class, not of the background.

    forward: logits (N, K, H, W) and targets (N, H, W), int64 class ids or ``ignore_index`` -> scalar. It is float32, or
    float64 for float64 logits. It is the (weighted) mean over the valid pixels of the whole batch, 0 if there are none.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        ohem: float = 0.0,
        ohem_keep: float = 1 / 16,
        dice: float = 0.0,
        lovasz: float = 0.0,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.ohem = ohem
        self.ohem_keep = ohem_keep
        self.dice = dice
        self.lovasz = lovasz
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probabilities = F.log_softmax(_one_for_each_id(logits), 1)
        loss = self._cross_entropy(log_probabilities, targets)
        if self.dice or self.lovasz:
            valid = targets != self.ignore_index
            probabilities = log_probabilities.exp()[:, -logits.shape[1] :]
            if self.dice:
                loss = loss + self.dice * dice_loss(probabilities, targets, valid)
            if self.lovasz:
                loss = loss + self.lovasz * lovasz_softmax_loss(probabilities.movedim(1, -1)[valid], targets[valid])
        return loss

    def mass(self, targets: Tensor) -> float:
        """Weight of a batch in the mean over several batches: its valid pixels, or the sum of their class weights."""
        valid = targets != self.ignore_index
        if self.class_weights is None:
            return float(valid.sum())
        return float(self.class_weights[targets[valid].to(self.class_weights.device)].sum())

    def _cross_entropy(self, log_probabilities: Tensor, targets: Tensor) -> Tensor:
        # They are logits too: their softmax is what they came from
        if self.ohem:
            targets = hard_targets(log_probabilities, targets, self.ignore_index, self.ohem, self.ohem_keep)
        weights = None if self.class_weights is None else self.class_weights.to(log_probabilities.dtype)
        options: dict[str, Any] = {"weight": weights, "ignore_index": self.ignore_index, "reduction": "sum"}
        if self.label_smoothing:
            total = F.cross_entropy(log_probabilities, targets, label_smoothing=self.label_smoothing, **options)
        else:
            total = F.nll_loss(log_probabilities, targets, **options)
        valid = targets != self.ignore_index
        size = valid.sum() if weights is None else weights[targets[valid]].sum()
        # The built-in mean is 0 / 0 for a crop without valid pixels.
        return total / torch.where(size > 0, size, 1)


def create_loss(recipe: Recipe, num_classes: int, ignore_index: int) -> SegmentationLoss:
    """Create the recipe's loss. Raises ConfigError if the number of class weights is not that of the classes.

    A single class takes the weights of background and class, or that of the class alone, where the background has 1.
    """
    weights = None
    given = recipe.class_weights
    if given is not None:
        if num_classes == 1 and len(given) == 1 and not isinstance(given, str):
            given = (1.0, *given)
        if isinstance(given, str) or len(given) != max(2, num_classes):
            count = given if isinstance(given, str) else len(given)
            expected = (
                f"{num_classes} numbers, one for each class"
                if num_classes > 1
                else ("1 number, the weight of the class, or 2, of background and class")
            )
            raise ConfigError.of("class_weights", count, f"{expected}")
        weights = torch.tensor(given)
    return SegmentationLoss(
        ignore_index=ignore_index,
        label_smoothing=recipe.label_smoothing,
        class_weights=weights,
        ohem=recipe.ohem,
        ohem_keep=recipe.ohem_keep,
        dice=recipe.dice,
        lovasz=recipe.lovasz,
    )


def _one_for_each_id(logits: Tensor) -> Tensor:
    """Add the logit 0 of the background to those of a single class: a softmax over both is the sigmoid of one."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


@torch.no_grad()
def hard_targets(logits: Tensor, targets: Tensor, ignore_index: int, threshold: float, keep: float) -> Tensor:
    """Replace the targets of all easy pixels by ``ignore_index``: online hard example mining (OHEM).

    A pixel is hard if its class gets a probability of at most ``threshold``. If hard pixels are fewer than the share
    ``keep`` of the valid pixels, the least probable pixels are taken up to that share. Pixels of equal probability stay
    together.

    Args:
        logits: Logits (N, K, H, W).
        targets: Class ids (N, H, W), or ``ignore_index``.
        ignore_index: Id of pixels that never count.
        threshold: Probability up to which a pixel is hard, 0 to 1.
        keep: Minimum share of valid pixels to keep, above 0 and up to 1.

    Returns:
        Targets (N, H, W) with ``ignore_index`` at easy pixels.
    """
    valid = targets != ignore_index
    losses = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    ranked = losses[valid]
    if not len(ranked):
        return targets
    least = max(1, math.ceil(keep * len(ranked)))
    limit = ranked.topk(least).values.amin().clamp(max=-math.log(threshold))
    return torch.where(losses >= limit, targets, ignore_index)


def dice_loss(probabilities: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Soft Dice loss 1 - 2 sum(p t) / (sum(p) + sum(t)), the mean over the classes that occur in ``targets``.

    Args:
        probabilities: Probabilities (N, K, ...), of images (N, K, H, W) or of pixels (P, K). With K = 1 they are those
            of id 1.
        targets: Class ids (N, ...).
        valid: True for each pixel (N, ...) that counts, None if all do.

    Returns:
        Scalar from 0 to 1, 0 if no pixel counts.

    Examples:
        >>> dice_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])).item()
        0.0
    """
    pixels = [0, *range(2, probabilities.ndim)]
    counts = torch.ones_like(targets, dtype=torch.bool) if valid is None else valid
    ids = torch.where(counts, targets, 0)[:, None]
    counts = counts[:, None].to(probabilities.dtype)
    # 1 for the class of each pixel that counts
    members = ids * counts if probabilities.shape[1] == 1 else torch.zeros_like(probabilities).scatter_(1, ids, counts)
    sizes = members.sum(pixels)
    overlap = (probabilities * members).sum(pixels)
    # An absent class has nothing to overlap with: its loss would be 1 for any prediction.
    return _mean_over_present(1 - 2 * overlap / ((probabilities * counts).sum(pixels) + sizes).clamp(min=1e-12), sizes)


def lovasz_softmax_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Lovasz extension of 1 - IoU (Berman, Triki and Blaschko, CVPR 2018), the mean over the classes that occur.

    At one-hot probabilities it is exactly 1 - IoU of the batch.

    Args:
        probabilities: Probabilities (P, K) of P pixels. With K = 1 they are those of id 1.
        targets: Class ids (P,).

    Returns:
        Scalar from 0 to 1, 0 if P is 0.

    Examples:
        >>> one_hot = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> lovasz_softmax_loss(one_hot, torch.tensor([0, 0, 1])).item()  # both IoU are 1/2
        0.5
    """
    classes = probabilities.shape[1]
    # (P, K) int64, so that the counts below are exact
    members = targets[:, None] if classes == 1 else F.one_hot(targets, classes)
    sizes = members.sum(0)
    errors, order = (members - probabilities).abs().sort(dim=0, descending=True)
    members = members.gather(0, order)
    # Row i is 1 - IoU once the i + 1 worst pixels are wrong and the others right.
    intersection = sizes - members.cumsum(0)
    union = sizes + (1 - members).cumsum(0)
    jaccard = 1 - intersection / union
    steps = torch.diff(jaccard, dim=0, prepend=torch.zeros_like(jaccard[:1]))
    return _mean_over_present((errors * steps.to(errors.dtype)).sum(0), sizes)


def _mean_over_present(losses: Tensor, sizes: Tensor) -> Tensor:
    present = sizes > 0
    return torch.where(present, losses, 0.0).sum() / present.sum().clamp(min=1)
