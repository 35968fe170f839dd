"""Losses of a dense prediction. Pixels labelled with the ignore index count nowhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SegmentationLoss(nn.Module):
    """Cross-entropy, plus ``dice`` x `dice_loss`, plus ``lovasz`` x `lovasz_softmax_loss`.

    forward: logits (N, K, H, W), targets (N, H, W) int64 class ids or ``ignore_index`` -> scalar in float32, the
    mean over the valid pixels of the whole batch; 0 where no pixel is valid.
    """

    def __init__(
        self, *, ignore_index: int = 255, label_smoothing: float = 0.0, dice: float = 0.0, lovasz: float = 0.0
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.dice = dice
        self.lovasz = lovasz

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()
        valid = targets != self.ignore_index
        # The built-in mean is 0 / 0 for a crop that is all void.
        total = F.cross_entropy(
            logits, targets, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing, reduction="sum"
        )
        loss = total / valid.sum().clamp(min=1)
        if self.dice or self.lovasz:
            probabilities = logits.softmax(1).movedim(1, -1)[valid]  # (P, K)
            labels = targets[valid]  # (P,)
            if self.dice:
                loss = loss + self.dice * dice_loss(probabilities, labels)
            if self.lovasz:
                loss = loss + self.lovasz * lovasz_softmax_loss(probabilities, labels)
        return loss


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """1 - 2 sum(p t) / (sum(p) + sum(t)), the mean over the classes that occur in ``targets``.

    probabilities (P, K), targets (P,) class ids -> scalar; 0 where P is 0.
    """
    members = F.one_hot(targets, probabilities.shape[1]).to(probabilities.dtype)  # (P, K)
    sizes = members.sum(0)
    overlap = (probabilities * members).sum(0)
    # A class that does not occur has nothing to overlap with: its loss would be 1 whatever the network does.
    return _mean_over_present(1 - 2 * overlap / (probabilities.sum(0) + sizes).clamp(min=1e-12), sizes)


def lovasz_softmax_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The Lovasz extension of 1 - IoU (Berman, Triki and Blaschko, CVPR 2018), the mean over classes that occur.

    probabilities (P, K), targets (P,) class ids -> scalar; 0 where P is 0. At one-hot probabilities it is exactly
    1 - IoU of the batch.
    """
    members = F.one_hot(targets, probabilities.shape[1])  # (P, K) int64, so that the counts below are exact
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
