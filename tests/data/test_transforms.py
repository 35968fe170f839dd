from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddsm_zoo.config import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from ddsm_zoo.data.transforms import EvalTransform, ImageTransform, TrainTransform, create_transform
from tests.support.errors import raises

PLAIN = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IGNORE = 255


def coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image whose red and green are row and column, and a mask that numbers the pixels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.full_like(rows, 200)]).to(torch.uint8)
    return image, rows * width + columns + 1000


def random_item(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return image, torch.randint(0, 11, (height, width), generator=generator)


sides = st.integers(1, 120)


@settings(max_examples=80, deadline=None)
@given(sides, sides, sides, sides, st.floats(0.3, 3.0), st.integers(0, 2**32))
def test_image_and_mask_stay_aligned(
    height: int, width: int, crop_height: int, crop_width: int, factor: float, seed: int
) -> None:
    image, mask = coordinates(height, width)
    transform = TrainTransform(PLAIN, (crop_height, crop_width), ignore_index=IGNORE, scale=(factor, factor))
    torch.manual_seed(seed)
    new_image, new_mask = transform(image, mask)
    assert new_image.shape == (3, crop_height, crop_width)
    assert new_image.dtype == torch.float32
    assert new_mask.shape == (crop_height, crop_width)
    assert new_mask.dtype == torch.int64
    inside = new_mask != IGNORE
    assert set(new_mask[inside].tolist()) <= set(mask.flatten().tolist())
    # padding is the mean color, here black; and only beyond the image
    assert (new_image[:, ~inside] == 0).all()
    row, column = (new_mask[inside] - 1000) // width, (new_mask[inside] - 1000) % width
    shown = new_image[:, inside] * 255
    assert shown[2] == pytest.approx(200, abs=0.01)
    # the id under a pixel's center is within half a source pixel of it; the rest is rounding, and the
    # one-sided averages of the antialiasing filter along the border of the window
    tolerance = 1.0 + 0.5 / factor
    assert (shown[0] - row).abs().max() <= tolerance
    assert (shown[1] - column).abs().max() <= tolerance


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.floats(0.75, 2.0), st.integers(0, 2**32))
def test_amount_of_padding_follows_the_factor(height: int, width: int, factor: float, seed: int) -> None:
    image, mask = coordinates(height, width)
    torch.manual_seed(seed)
    _, new_mask = TrainTransform(PLAIN, (100, 90), scale=(factor, factor))(image, mask)
    inside = new_mask != IGNORE
    rows, columns = int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())
    assert rows == min(100, max(1, round(height * factor)))
    assert columns == min(90, max(1, round(width * factor)))
    assert int(inside.sum()) == rows * columns


def test_window_equals_crop_of_the_resized_image() -> None:
    image, mask = random_item(90, 120)
    torch.manual_seed(3)
    new_image, new_mask = TrainTransform(PLAIN, (40, 60), scale=(2.0, 2.0), flip=0.0)(image, mask)
    whole_mask = F.interpolate(mask[None, None].float(), scale_factor=2, mode="nearest-exact")[0, 0].long()
    whole_image = F.interpolate(image[None].float(), scale_factor=2, mode="bilinear", antialias=True)[0] / 255
    windows = whole_mask.unfold(0, 40, 1).unfold(1, 60, 1)
    [[top, left]] = (windows == new_mask).all(dim=-1).all(dim=-1).nonzero().tolist()
    difference = (whole_image[:, top : top + 40, left : left + 60] - new_image).abs()
    assert difference[:, 1:-1, 1:-1].max() <= 1.01 / 255


@pytest.mark.parametrize(("old", "new"), [(7, 7), (7, 14), (30, 17), (17, 30), (64, 3), (1, 5)])
def test_mask_takes_the_id_under_the_pixel_center(old: int, new: int) -> None:
    mask = torch.arange(old)[None].repeat(old, 1)
    image = torch.zeros(3, old, old, dtype=torch.uint8)
    factor = new / old
    _, resized = TrainTransform(PLAIN, (new, new), scale=(factor, factor), flip=0.0)(image, mask)
    expected = F.interpolate(mask[None, None].double(), size=(new, new), mode="nearest-exact")[0, 0].long()
    assert torch.equal(resized, expected)


def test_flip_is_always_never_or_both() -> None:
    image, mask = coordinates(8, 10)

    def flipped(probability: float, seed: int) -> bool:
        torch.manual_seed(seed)
        transform = TrainTransform(PLAIN, (8, 10), scale=(1.0, 1.0), flip=probability)
        new_image, new_mask = transform(image, mask)
        mirrored = bool(new_mask[0, 0] > new_mask[0, -1])
        assert torch.equal(new_mask, mask.flip(-1) if mirrored else mask)
        assert torch.equal((new_image * 255).round().to(torch.uint8), image.flip(-1) if mirrored else image)
        return mirrored

    assert not any(flipped(0.0, seed) for seed in range(5))
    assert all(flipped(1.0, seed) for seed in range(5))
    assert {flipped(0.5, seed) for seed in range(20)} == {True, False}


def test_scale_covers_its_whole_range() -> None:
    image, mask = coordinates(100, 100)
    transform = TrainTransform(PLAIN, (200, 200))
    torch.manual_seed(0)
    lengths = [int((transform(image, mask)[1] != IGNORE).any(dim=0).sum()) for _ in range(40)]
    assert 75 <= min(lengths) < 90
    assert 185 < max(lengths) <= 200


def test_padding_normalizes_to_zero_and_uses_the_ignore_index() -> None:
    image, mask = random_item(20, 20)
    new_image, new_mask = TrainTransform(Preprocess(), (64, 64), ignore_index=-7, jitter=1.0)(image, mask)
    outside = new_mask == -7
    assert outside.any()
    assert new_image[:, outside].abs().max() < 0.5 / 255 / min(IMAGENET_STD) + 1e-6


def test_jitter_changes_colors_and_no_labels() -> None:
    image, mask = random_item(24, 24)
    still = TrainTransform(PLAIN, (24, 24), scale=(1.0, 1.0), flip=0.0)
    jittered = TrainTransform(PLAIN, (24, 24), scale=(1.0, 1.0), flip=0.0, jitter=0.5)
    torch.manual_seed(0)
    new_image, new_mask = jittered(image, mask)
    assert torch.equal(new_mask, mask)
    assert (new_image - still(image, mask)[0]).abs().mean() > 0.02
    assert new_image.min() >= 0.0
    assert new_image.max() <= 1.0


def test_blur_smooths_the_image_and_changes_no_labels() -> None:
    image, mask = random_item(24, 24)
    still, blurred = (TrainTransform(PLAIN, (24, 24), scale=(1.0, 1.0), flip=0.0, blur=blur) for blur in (0.0, 1.0))
    new_image, new_mask = blurred(image, mask)
    assert torch.equal(new_mask, mask)
    assert new_image.std() < still(image, mask)[0].std()
    assert new_image.mean() == pytest.approx(still(image, mask)[0].mean().item(), abs=0.02)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 40), st.integers(1, 40), st.floats(1.0, 3.0), st.integers(0, 2**32))
def test_class_crops_show_the_rare_class_as_often_as_the_common_one(
    height: int, width: int, crop_height: int, crop_width: int, factor: float, seed: int
) -> None:
    """One pixel of a class is in about half of the crops, wherever it is; without class crops in few of them."""
    torch.manual_seed(seed)
    mask = torch.zeros(height, width, dtype=torch.int64)
    mask[torch.randint(height, ()), torch.randint(width, ())] = 1
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    transform = TrainTransform(PLAIN, (crop_height, crop_width), scale=(factor, factor), class_crops=1.0)
    shown = sum(bool((transform(image, mask)[1] == 1).any()) for _ in range(40))
    assert shown >= 6  # 20 expected: fewer than 6 have a probability of 3e-6


def test_class_crops_of_a_mask_without_classes_are_random_crops() -> None:
    image, mask = random_item(20, 20)
    transform = TrainTransform(PLAIN, (8, 8), class_crops=1.0)
    assert (transform(image, torch.full_like(mask, 255))[1] == 255).all()


def test_inputs_are_left_alone() -> None:
    image, mask = random_item(30, 40)
    before = image.clone(), mask.clone()
    TrainTransform(Preprocess(), (16, 16), jitter=0.5)(image, mask)
    EvalTransform(Preprocess())(image, mask)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_evaluation_normalizes_only() -> None:
    image, mask = random_item(17, 23)
    new_image, new_mask = EvalTransform(Preprocess())(image, mask)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(new_image, (image / 255 - mean) / std)
    assert torch.equal(new_mask, mask)
    assert type(new_image) is Tensor
    assert type(new_mask) is Tensor


def test_image_transform_agrees_with_evaluation_for_pil_array_and_gray() -> None:
    image, mask = random_item(9, 14)
    expected, _ = EvalTransform(Preprocess())(image, mask)
    array = image.permute(1, 2, 0).numpy().copy()
    transform = ImageTransform(Preprocess())
    torch.testing.assert_close(transform(array), expected)
    torch.testing.assert_close(transform(Image.fromarray(array)), expected)
    array.setflags(write=False)
    assert transform(array).is_contiguous()
    gray = array[..., 0]
    torch.testing.assert_close(transform(gray), transform(np.stack([gray] * 3, axis=-1)))


@pytest.mark.parametrize(
    ("size", "expected"), [((30, 40), (60, 80)), ((20, 20), (69, 69)), ((60, 80), (60, 80)), ((61, 80), (61, 80))]
)
def test_small_images_are_enlarged_to_as_many_pixels_in_their_own_shape(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image, mask = random_item(*size)
    preprocess = Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3, min_size=(60, 80))
    enlarged, same_mask = EvalTransform(preprocess)(image, mask)
    by_hand = F.interpolate(image[None].float(), expected, mode="bilinear")[0]
    torch.testing.assert_close(enlarged, (by_hand / 255 - 0.5) / 0.25, atol=0.51 / 255 / 0.25, rtol=0)
    assert torch.equal(same_mask, mask)
    torch.testing.assert_close(ImageTransform(preprocess)(image.permute(1, 2, 0).numpy()), enlarged)


def test_training_scales_count_from_the_enlarged_image() -> None:
    """Every pixel of the source is a block of 2 x 2 in the enlarged image, and of 4 x 4 at twice that scale."""
    image, mask = random_item(6, 8)
    preprocess = Preprocess(min_size=(12, 16))
    for scale, block in ((1.0, 2), (2.0, 4)):
        _, new_mask = TrainTransform(preprocess, (6 * block, 8 * block), 255, (scale, scale), flip=0.0)(image, mask)
        assert torch.equal(new_mask, mask.repeat_interleave(block, 0).repeat_interleave(block, 1))


def test_image_transform_for_four_channels() -> None:
    transform = ImageTransform(Preprocess(mean=(0.5,) * 4, std=(0.25,) * 4))
    assert transform(np.full((2, 3, 4), 255, dtype=np.uint8)).unique().tolist() == [2.0]
    with raises(ValueError, kind="array", name="image", got=(2, 3, 3)):
        transform(np.zeros((2, 3, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_image_transform_refuses_other_arrays(array: np.ndarray) -> None:
    with raises(ValueError, kind="array", name="image", got=array.shape):
        ImageTransform(Preprocess())(array)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"crop_size": (0, 4)}, "crop_size"),
        ({"crop_size": (4, 4), "scale": (0.0, 1.0)}, "scale"),
        ({"crop_size": (4, 4), "scale": (2.0, 1.0)}, "scale"),
        ({"crop_size": (4, 4), "flip": 1.5}, "flip"),
        ({"crop_size": (4, 4), "jitter": -0.1}, "jitter"),
        ({"crop_size": (4, 4), "blur": 2.0}, "blur"),
        ({"crop_size": (4, 4), "class_crops": -1.0}, "class_crops"),
    ],
)
def test_training_parameters_out_of_range(arguments: dict[str, object], named: str) -> None:
    with raises(ValueError, kind="argument", name=named):
        TrainTransform(Preprocess(), **arguments)


def test_create_transform_picks_by_use() -> None:
    preprocess = Preprocess(size=(32, 48))
    assert isinstance(create_transform(preprocess), ImageTransform)
    image, mask = random_item(60, 60)
    for crop_size, expected in ((None, (32, 48)), ((16, 20), (16, 20))):
        transform = create_transform(preprocess, is_training=True, crop_size=crop_size)
        assert isinstance(transform, TrainTransform)
        assert transform(image, mask)[1].shape == expected
    with raises(ValueError, kind="argument", name="crop_size"):
        create_transform(Preprocess(), is_training=True)


def test_printed_transform_shows_its_steps_and_statistics() -> None:
    printed = repr(ImageTransform(Preprocess()))
    assert printed.startswith("ImageTransform(")
    assert all(str(value) in printed for value in (*IMAGENET_MEAN, *IMAGENET_STD))
