"""Cross-entropy over chosen and weighted pixels: by loops, by torch's own mean, by segmentation_models_pytorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddsm_zoo.training.losses import SegmentationLoss, create_loss, dice_loss, lovasz_softmax_loss
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises

IGNORED = 255


def random_case(seed: int, classes: int = 4, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2, classes, 4, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (2, 4, 5), generator=generator)
    return logits, torch.where(torch.rand(2, 4, 5, generator=generator) < 0.2, IGNORED, targets)


def probabilities_of_targets(logits: Tensor, targets: Tensor) -> list[float]:
    """The probability that each valid pixel gives its class, pixel by pixel."""
    found = []
    for n in range(targets.shape[0]):
        for y in range(targets.shape[1]):
            for x in range(targets.shape[2]):
                label = int(targets[n, y, x])
                if label != IGNORED:
                    scores = [math.exp(value) for value in logits[n, :, y, x].tolist()]
                    found.append(scores[label] / sum(scores))
    return found


@given(seed=st.integers(0, 9999), threshold=st.floats(0.05, 0.95), keep=st.floats(0.01, 1.0), spread=st.floats(0.1, 8))
def test_hard_example_mining_by_sorting(seed: int, threshold: float, keep: float, spread: float) -> None:
    logits, targets = random_case(seed, spread=spread)
    ranked = sorted(probabilities_of_targets(logits, targets))
    least = max(1, math.ceil(keep * len(ranked)))
    hard = [value for place, value in enumerate(ranked) if value <= threshold or place < least]
    expected = sum(-math.log(value) for value in hard) / len(hard)
    loss = SegmentationLoss(ohem=threshold, ohem_keep=keep)(logits, targets)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_easy_pixels_get_no_gradient() -> None:
    logits = torch.tensor([[4.0, 0.0, -3.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2).requires_grad_()
    SegmentationLoss(ohem=0.7)(logits, torch.zeros(1, 1, 2, dtype=torch.long)).backward()
    assert logits.grad is not None
    assert logits.grad[..., 0].abs().max() == 0  # 98 % of it is its class
    assert logits.grad[..., 1].abs().min() > 0  # 33 %


def test_hard_pixels_of_a_void_batch_cost_nothing() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = SegmentationLoss(ohem=0.7)(logits, torch.full((1, 2, 2), IGNORED))
    loss.backward()
    assert loss.item() == 0


@given(seed=st.integers(0, 9999), smoothing=st.sampled_from([0.0, 0.1]))
def test_weighted_classes_are_torchs_weighted_mean(seed: int, smoothing: float) -> None:
    logits, targets = random_case(seed)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    weights[seed % 4] += 1
    expected = F.cross_entropy(logits, targets, weight=weights, ignore_index=IGNORED, label_smoothing=smoothing)
    loss = SegmentationLoss(label_smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(loss(logits, targets), expected)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)])
def test_parts_of_a_batch_make_its_mean_by_their_mass(weights: Tensor | None) -> None:
    logits, targets = random_case(3)
    loss = SegmentationLoss(class_weights=weights)
    parts = [(loss(logits[n : n + 1], targets[n : n + 1]), loss.mass(targets[n : n + 1])) for n in range(2)]
    total = sum(value * mass for value, mass in parts) / sum(mass for _, mass in parts)
    torch.testing.assert_close(total, loss(logits, targets))


def flat(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    valid = targets != IGNORED
    return logits.softmax(1).movedim(1, -1)[valid], targets[valid]


@pytest.mark.parametrize("seed", range(8))
def test_dice_and_lovasz_are_those_of_smp(seed: int) -> None:
    logits, targets = random_case(seed)
    assert set(targets.unique().tolist()) >= {0, 1, 2, 3}  # smp averages over absent classes too
    theirs: dict[Any, Any] = {
        dice_loss: smp.losses.DiceLoss("multiclass", ignore_index=IGNORED),
        lovasz_softmax_loss: smp.losses.LovaszLoss("multiclass", ignore_index=IGNORED),
    }
    for ours, other in theirs.items():
        expected = other(logits.float(), targets)  # smp's Lovasz takes nothing else
        torch.testing.assert_close(ours(*flat(logits, targets)).float(), expected, rtol=1e-6, atol=1e-6)


def test_a_recipe_names_every_part_of_its_loss() -> None:
    fields = {"label_smoothing": 0.1, "ohem": 0.6, "ohem_keep": 0.5, "dice": 0.3, "lovasz": 0.2}
    recipe = Recipe(model="m", class_weights=(1.0, 2.0, 3.0, 4.0), **fields)
    logits, targets = random_case(5)
    direct = SegmentationLoss(class_weights=torch.tensor([1.0, 2.0, 3.0, 4.0]), **fields)
    assert create_loss(recipe, 4, IGNORED)(logits, targets).item() == direct(logits, targets).item()
    plain = create_loss(Recipe(model="m"), 4, IGNORED)(logits, targets)
    assert plain.item() == pytest.approx(F.cross_entropy(logits, targets, ignore_index=IGNORED).item())


@pytest.mark.parametrize(("weights", "given"), [((1.0, 2.0), 2), ("auto", "auto")])
def test_class_weights_are_one_for_each_class(weights: Any, given: object) -> None:
    with raises(ConfigError, name="class_weights", got=given, expected="3 numbers, one for each class"):
        create_loss(Recipe(model="m", class_weights=weights), 3, IGNORED)
