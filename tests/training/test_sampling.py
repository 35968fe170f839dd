"""Which images an epoch shows: exact counts, a function of (seed, epoch) alone; and rarity by definitions in loops."""

from __future__ import annotations

import math
import statistics
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.training.dataloader import shuffled
from ddsm_zoo.training.sampling import epoch_order, median_frequency, rarity

counts_of_classes = st.integers(1, 5).flatmap(
    lambda classes: st.lists(
        st.lists(st.integers(0, 3) | st.integers(0, 10**6), min_size=classes, max_size=classes), min_size=1, max_size=8
    )
)
weights_of_images = st.lists(st.just(0.0) | st.floats(1e-3, 1e3), min_size=1, max_size=12).filter(any)


@given(count=st.integers(1, 20), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_an_epoch_is_all_images_unless_asked(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order == shuffled(count, seed, epoch)


@given(count=st.integers(1, 20), images=st.integers(1, 50), seed=st.integers(0, 99), epochs=st.integers(1, 6))
def test_no_image_comes_again_before_all_others(count: int, images: int, seed: int, epochs: int) -> None:
    shown: list[int] = []
    for epoch in range(epochs):
        order = epoch_order(count, seed, epoch, images)
        assert len(order) == min(images, count)
        shown += order
    for start in range(0, len(shown), count):
        assert len(set(shown[start : start + count])) == len(shown[start : start + count])


@given(weights=weights_of_images, images=st.integers(1, 60), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_a_weighted_image_comes_its_expected_number_of_times_rounded(
    weights: list[float], images: int, seed: int, epoch: int
) -> None:
    drawn = Counter(epoch_order(len(weights), seed, epoch, images, weights))
    images = min(images, len(weights))
    assert drawn.total() == images
    for index, weight in enumerate(weights):
        expected = images * weight / sum(weights)
        assert math.floor(expected - 1e-6) <= drawn[index] <= math.ceil(expected + 1e-6)
        assert weight or not drawn[index]


def test_over_many_epochs_images_come_in_proportion_to_their_weights() -> None:
    weights = [0.2, 1.0, 3.0, 0.05]
    drawn = Counter(index for epoch in range(4000) for index in epoch_order(4, 7, epoch, 3, weights))
    for index, weight in enumerate(weights):
        assert drawn[index] / drawn.total() == pytest.approx(weight / sum(weights), rel=0.1)


def test_the_draw_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    def draw(seed: int, epoch: int) -> list[int]:
        return epoch_order(9, seed, epoch, weights=torch.arange(1, 10))

    first = draw(1, 2)
    torch.manual_seed(5)
    assert draw(1, 2) == first
    assert draw(1, 3) != first
    assert draw(2, 2) != first


@given(counts_of_classes)
def test_rarity_adds_up_over_the_classes_of_an_image(counts: list[list[int]]) -> None:
    shown_by = [sum(image[label] > 0 for image in counts) for label in range(len(counts[0]))]
    expected = [
        sum(1 / math.sqrt(shown_by[label]) for label, pixels in enumerate(image) if pixels > 0) for image in counts
    ]
    assert rarity(torch.tensor(counts)).tolist() == pytest.approx(expected)


@given(counts_of_classes)
def test_class_weights_by_median_frequency(counts: list[list[int]]) -> None:
    frequency = {}
    for label in range(len(counts[0])):
        showing = [image for image in counts if image[label] > 0]
        if showing:
            frequency[label] = sum(image[label] for image in showing) / sum(map(sum, showing))
    median = statistics.median(frequency.values()) if frequency else 1.0
    expected = [median / frequency[label] if label in frequency else 1.0 for label in range(len(counts[0]))]
    assert median_frequency(torch.tensor(counts)).tolist() == pytest.approx(expected)
