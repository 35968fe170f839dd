"""Ways to run a model over an image, each a function from callable to callable, so that they compose.

``multi_scale(sliding_window(whole(model), crop, stride), scales, flip=True)`` is the whole protocol of a paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ddsm_zoo.layers import resize

Predict = Callable[[Tensor], Tensor]
"""(N, 3, H, W) normalised float image -> (N, K, H, W) scores of K classes; the highest wins."""

Precision = Literal["fp32", "bf16"]

MAX_SCALE = 16  # beyond it a photo fills any memory


def full_image(model: nn.Module, precision: Precision = "fp32") -> Predict:
    """The logits of ``model`` on the whole image at once, without gradients.

    The model is put into evaluation mode and images follow it to its device, in channels-last memory, which is
    the faster layout for convolutions. ``precision`` "bf16" computes convolutions and products in bfloat16 and
    gives float32 all the same. Raises ValueError for another precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}, expected {' or '.join(get_args(Precision))}")
    model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(image: Tensor) -> Tensor:
        model.eval()  # at each call: the model may have been trained in between
        like = next(model.parameters(), image)
        image = image.to(like.device, like.dtype, memory_format=torch.channels_last)
        if precision == "fp32":
            logits: Tensor = model(image)
            return logits
        with torch.autocast(like.device.type, torch.bfloat16):
            logits = model(image)
        return logits.float()

    return predict


def sliding_window(predict: Predict, crop: tuple[int, int], stride: tuple[int, int]) -> Predict:
    """Run ``predict`` on windows of ``crop`` (h, w) pixels that start every ``stride`` (h, w) pixels.

    The last window of each row and column ends at the image's border; an image smaller than ``crop`` is one window.
    Where windows overlap their scores are averaged with weights that fall off towards the window's edges, where
    the network sees least context, so no seams appear. Windows run one after another: beyond the result,
    memory does not grow with the image. Raises ValueError for a stride that would leave gaps.
    """
    for size, step in zip(crop, stride, strict=True):
        if not 1 <= step <= size:
            raise ValueError(f"sliding window has stride {step} for a crop of {size} pixels, expected 1 to {size}")

    @torch.inference_mode()
    def predict_windows(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        crop_h, crop_w = min(crop[0], height), min(crop[1], width)
        weight_y, weight_x = _tent(crop_h, image), _tent(crop_w, image)
        rows, columns = _starts(height, crop_h, stride[0]), _starts(width, crop_w, stride[1])
        windows = [(slice(top, top + crop_h), slice(left, left + crop_w)) for top in rows for left in columns]
        total: Tensor | None = None
        for y, x in windows:
            scores = predict(image[..., y, x])
            if total is None:
                total = scores.new_zeros(*scores.shape[:2], height, width)
            total[..., y, x] += scores * (weight_y[:, None] * weight_x).to(scores)
        assert total is not None
        # The windows form a grid, so the sum of their weights at a pixel is a product as well.
        norm_y, norm_x = _summed(weight_y, rows, height), _summed(weight_x, columns, width)
        return total / (norm_y[:, None] * norm_x).to(total)

    return predict_windows


def multi_scale(predict: Predict, scales: Sequence[float], flip: bool = False) -> Predict:
    """The mean of class probabilities over resized images, and over their mirror images when ``flip``.

    ``predict`` gives logits, the result holds probabilities at the image's own size. Raises ValueError for no
    scales and for ones out of range.
    """
    if not scales or not all(0 < scale <= MAX_SCALE for scale in scales):  # nan is neither
        raise ValueError(
            f"multi-scale inference got scales {tuple(scales)}, expected one or more positive numbers up to {MAX_SCALE}"
        )

    @torch.inference_mode()
    def predict_scales(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        total: Tensor | None = None
        for scale in scales:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            scaled = resize(image, size)
            probabilities = predict(scaled).softmax(1)
            if flip:
                probabilities = (probabilities + predict(scaled.flip(-1)).softmax(1).flip(-1)) / 2
            probabilities = resize(probabilities, (height, width))
            total = probabilities if total is None else total + probabilities
        assert total is not None
        return total / len(scales)

    return predict_scales


def _starts(size: int, crop: int, stride: int) -> list[int]:
    return [*range(0, size - crop, stride), size - crop]


def _tent(length: int, like: Tensor) -> Tensor:
    """(length,) weights: 1 in the middle, falling linearly, positive up to the edges."""
    ramp = torch.arange(1, length + 1, device=like.device, dtype=torch.float32)
    return torch.minimum(ramp, ramp.flip(0)) / ((length + 1) // 2)


def _summed(weight: Tensor, starts: Sequence[int], size: int) -> Tensor:
    total = weight.new_zeros(size)
    for start in starts:
        total[start : start + len(weight)] += weight
    return total
