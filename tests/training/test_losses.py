"""The losses against definitions computed in other ways: by sets, by loops over pixels, by exact fractions."""

from __future__ import annotations

import itertools

import pytest
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


def random_case(seed: int, pixels: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(pixels, classes, generator=generator, dtype=torch.float64).softmax(1)
    return probabilities, torch.randint(classes, (pixels,), generator=generator)


def jaccard_loss_of_mistakes(mistakes: set[int], members: set[int]) -> float:
    """1 - IoU of a class when exactly the pixels in ``mistakes`` are predicted wrongly."""
    predicted = members ^ mistakes
    union = predicted | members
    return 1 - len(predicted & members) / len(union) if union else 0.0


def lovasz_by_integral(errors: list[float], members: set[int]) -> float:
    """The Lovasz extension as the integral over t of the set function at {pixels with an error above t}."""
    levels = sorted({0.0, *errors})
    total = 0.0
    for low, high in itertools.pairwise(levels):
        mistakes = {pixel for pixel, error in enumerate(errors) if error > low}
        total += (high - low) * jaccard_loss_of_mistakes(mistakes, members)
    return total


@given(seed=st.integers(0, 10_000), pixels=st.integers(1, 12), classes=st.integers(1, 4))
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed: int, pixels: int, classes: int) -> None:
    probabilities, targets = random_case(seed, pixels, classes)
    expected = []
    for label in set(targets.tolist()):
        members = {pixel for pixel in range(pixels) if targets[pixel] == label}
        errors = [abs((pixel in members) - probabilities[pixel, label].item()) for pixel in range(pixels)]
        expected.append(lovasz_by_integral(errors, members))
    assert lovasz_softmax_loss(probabilities, targets).item() == pytest.approx(sum(expected) / len(expected))


@given(seed=st.integers(0, 10_000), pixels=st.integers(1, 30), classes=st.integers(1, 4))
def test_dice_by_loops(seed: int, pixels: int, classes: int) -> None:
    probabilities, targets = random_case(seed, pixels, classes)
    expected = []
    for label in set(targets.tolist()):
        overlap = sum(probabilities[pixel, label].item() for pixel in range(pixels) if targets[pixel] == label)
        sizes = sum(probabilities[pixel, label].item() + (targets[pixel] == label).item() for pixel in range(pixels))
        expected.append(1 - 2 * overlap / sizes)
    assert dice_loss(probabilities, targets).item() == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("loss", [dice_loss, lovasz_softmax_loss])
def test_right_predictions_cost_nothing_and_wrong_ones_everything(loss: object) -> None:
    assert callable(loss)
    targets = torch.tensor([0, 0, 1, 2])
    right = F.one_hot(targets, 3).double()
    assert loss(right, targets).item() == pytest.approx(0)
    assert loss(right.roll(1, dims=1), targets).item() == pytest.approx(1)


@pytest.mark.parametrize("loss", [dice_loss, lovasz_softmax_loss])
def test_gradients(loss: object) -> None:
    assert callable(loss)
    logits = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 1, 0, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda x: loss(x.softmax(1), targets), logits)


def test_cross_entropy_is_the_mean_over_valid_pixels() -> None:
    logits, targets = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randint(4, (2, 3, 5))
    targets[0, :, 2] = IGNORED
    log_probabilities = logits.log_softmax(1)
    expected = [
        -log_probabilities[n, targets[n, y, x], y, x].item()
        for n, y, x in itertools.product(range(2), range(3), range(5))
        if targets[n, y, x] != IGNORED
    ]
    assert SegmentationLoss()(logits, targets).item() == pytest.approx(sum(expected) / len(expected))


def test_label_smoothing_matches_the_built_in_mean() -> None:
    logits, targets = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randint(4, (2, 3, 5))
    targets[1, 0] = IGNORED
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=0.1)
    torch.testing.assert_close(SegmentationLoss(label_smoothing=0.1)(logits, targets), expected)


def test_the_parts_are_added_with_their_weights() -> None:
    logits, targets = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(3, (2, 4, 4))
    probabilities, labels = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, 3), targets.flatten()
    expected = (
        F.cross_entropy(logits, targets)
        + 0.5 * dice_loss(probabilities, labels)
        + 2.0 * lovasz_softmax_loss(probabilities, labels)
    )
    torch.testing.assert_close(SegmentationLoss(dice=0.5, lovasz=2.0)(logits, targets), expected)


def test_ignored_pixels_change_nothing_and_get_no_gradient() -> None:
    loss = SegmentationLoss(label_smoothing=0.1, dice=1.0, lovasz=1.0)
    logits, targets = torch.randn(1, 3, 4, 4, dtype=torch.float64), torch.randint(3, (1, 4, 4))
    targets[0, :2] = IGNORED
    first = logits.clone().requires_grad_()
    second = torch.where(targets[:, None] == IGNORED, 100 * torch.randn_like(logits), logits)
    loss(first, targets).backward()
    torch.testing.assert_close(loss(second, targets), loss(first, targets).detach())
    assert first.grad is not None
    assert first.grad[..., :2, :].abs().max() == 0
    assert first.grad[..., 2:, :].abs().min() > 0


def test_a_batch_of_void_costs_nothing() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = SegmentationLoss(label_smoothing=0.1, dice=1.0, lovasz=1.0)(logits, torch.full((2, 4, 4), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_half_precision_logits_are_summed_in_single_precision() -> None:
    logits, targets = torch.randn(1, 3, 300, 300).bfloat16(), torch.randint(3, (1, 300, 300))
    loss = SegmentationLoss(lovasz=1.0)(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, SegmentationLoss(lovasz=1.0)(logits.double(), targets), check_dtype=False)


def binary_case(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, 1, H, W) and targets (N, H, W) of 0, 1 and ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 1, 6, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(2, (2, 6, 7), generator=generator)
    targets[0, 0, :3] = IGNORED
    return logits, targets


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_logit_has_the_binary_cross_entropy(smoothing: float) -> None:
    logits, targets = binary_case()
    valid = targets != IGNORED
    soft = targets[valid] * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], soft.double())
    assert SegmentationLoss(label_smoothing=smoothing)(logits, targets).item() == pytest.approx(expected.item())


def test_weight_of_a_single_class_is_that_of_positive_pixels() -> None:
    logits, targets = binary_case()
    valid = targets != IGNORED
    true = targets[valid].double()
    summed = F.binary_cross_entropy_with_logits(
        logits[:, 0][valid], true, pos_weight=torch.tensor(4.0), reduction="sum"
    )
    expected = summed / (1 + 3 * true).sum()  # the mean is over the weights, as with several classes
    for weights in ((4.0,), (1.0, 4.0), (0.5, 2.0)):
        loss = create_loss(Recipe(model="m", class_weights=weights), 1, IGNORED)
        assert loss(logits, targets).item() == pytest.approx(expected.item())
    with raises(ConfigError, kind="config", name="class_weights", got=3):
        create_loss(Recipe(model="m", class_weights=(1.0, 2.0, 3.0)), 1, IGNORED)


def test_dice_and_lovasz_of_one_logit_are_those_of_the_class() -> None:
    logits, targets = binary_case()
    valid = targets != IGNORED
    found, true = logits[:, 0][valid].sigmoid(), targets[valid]
    plain = SegmentationLoss()(logits, targets).item()
    dice = 1 - 2 * (found * true).sum() / (found.sum() + true.sum())
    assert SegmentationLoss(dice=1.0)(logits, targets).item() - plain == pytest.approx(dice.item())
    members = set(true.nonzero().flatten().tolist())
    lovasz = lovasz_by_integral((true - found).abs().tolist(), members)
    assert SegmentationLoss(lovasz=1.0)(logits, targets).item() - plain == pytest.approx(lovasz)


@pytest.mark.parametrize("options", [{}, {"ohem": 0.6}, {"label_smoothing": 0.1}])
def test_one_logit_has_the_loss_and_gradient_of_two(options: dict[str, float]) -> None:
    logits, targets = binary_case()
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = SegmentationLoss(**options)
    loss(one, targets).backward()
    loss(torch.cat([torch.zeros_like(other), other], 1), targets).backward()
    torch.testing.assert_close(one.grad, other.grad)
    assert one.grad is not None
    assert one.grad.abs().sum() > 0


def test_one_logit_without_pixels_of_the_class_or_without_labels() -> None:
    logits, targets = binary_case()
    for value in (0, IGNORED):
        scores = logits.clone().requires_grad_()
        loss = SegmentationLoss(dice=1.0, lovasz=1.0)(scores, torch.full_like(targets, value))
        loss.backward()
        assert loss.isfinite()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()
    assert loss.item() == 0
