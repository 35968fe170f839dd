"""Inference modes: functions that take a prediction function and return one, so that they compose.

``multi_scale(sliding_window(full_image(model), crop, stride), scales, flip=True)`` is the whole protocol of a paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor, nn

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.inference.precision import Precision, choose_precision, run
from ddsm_zoo.inference.scores import as_scores, probabilities
from ddsm_zoo.layers import resize

Predict = Callable[[Tensor], Tensor]
"""Maps a normalized float image (N, 3, H, W) to scores (N, K, H, W) of K classes.

The highest score wins. A single class has logits, see `scores.predict_ids`.
"""

MAX_SCALE = 16  # larger scales run out of memory on any photo


@contextmanager
def keeping_mode(model: object) -> Iterator[None]:
    """Put every part of ``model``, if it is a module, back into training or evaluation mode after the block."""
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def full_image(model: nn.Module, precision: Precision = "fp32") -> Predict:
    """Predict the logits of a whole image at once, without gradients.

    Each call puts the model into evaluation mode and moves the image to the model's device. Images and weights use
    channels-last memory, the faster layout for convolutions.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, K, H, W).
        precision: "fp32", or "bf16" to compute convolutions and matrix products in bfloat16. "auto" takes the one that
            `choose_precision` finds with the first image. The logits are float32 in all cases.

    Returns:
        A function from images (N, 3, H, W) to logits (N, K, H, W).

    Raises:
        ValueError: ``precision`` is none of them.
    """
    if precision not in get_args(Precision):
        raise ArgumentError.of("precision", precision, f"{', '.join(get_args(Precision))}", shown=repr(precision))
    model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(image: Tensor) -> Tensor:
        model.eval()  # at each call: the model may have been trained in between
        like = next(model.parameters(), image)
        image = image.to(like.device, like.dtype, memory_format=torch.channels_last)
        return run(model, image, choose_precision(model, image) if precision == "auto" else precision)

    return predict


def sliding_window(predict: Predict, crop: tuple[int, int], stride: tuple[int, int]) -> Predict:
    """Run ``predict`` on overlapping windows and average the scores.

    The last window of each row and column ends at the border of the image. An image smaller than ``crop`` is one
    window. Overlapping scores are averaged with weights that fall off toward a window's edges. The network sees least
    context there, so no seams appear. Windows run one after another, so memory grows with the image only by the result.

    Args:
        predict: Function to run on each window.
        crop: Size (h, w) of a window in pixels.
        stride: Distance (h, w) between window starts in pixels, from 1 to ``crop``.

    Returns:
        A function from images (N, 3, H, W) to scores (N, K, H, W).

    Raises:
        ValueError: ``stride`` is larger than ``crop`` and would leave gaps, or below 1.
    """
    for size, step in zip(crop, stride, strict=True):
        if not 1 <= step <= size:
            raise ArgumentError(
                f"sliding window has stride {step} for a crop of {size} pixels, expected 1 to {size}",
                name="stride",
                got=step,
                expected=f"1 to {size}",
            )

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
        # The windows form a grid, so the sum of their weights at a pixel is a product too.
        norm_y, norm_x = _summed(weight_y, rows, height), _summed(weight_x, columns, width)
        return total / (norm_y[:, None] * norm_x).to(total)

    return predict_windows


def multi_scale(predict: Predict, scales: Sequence[float], flip: bool = False) -> Predict:
    """Average class probabilities over resized images and, with ``flip``, their mirror images.

    Args:
        predict: Function from images to logits.
        scales: Resize factors, each above 0 and at most 16.
        flip: Add the horizontally mirrored image at each scale.

    Returns:
        A function from images (N, 3, H, W) to probabilities (N, K, H, W) at the image's own size. For a single class,
            it gives the logits of these probabilities.

    Raises:
        ValueError: ``scales`` is empty or has a factor out of range.

    Examples:
        >>> import ddsm_zoo, torch
        >>> predict = full_image(ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=7))
        >>> windows = sliding_window(predict, crop=(64, 64), stride=(48, 48))
        >>> multi_scale(windows, [1, 1.5], flip=True)(torch.rand(1, 3, 80, 64)).shape
        torch.Size([1, 7, 80, 64])
    """
    if not scales or not all(0 < scale <= MAX_SCALE for scale in scales):  # also rejects nan
        raise ArgumentError(
            f"multi-scale inference got scales {tuple(scales)}, expected one or more positive numbers up to "
            f"{MAX_SCALE}",
            name="scales",
            got=tuple(scales),
            expected=f"positive numbers up to {MAX_SCALE}",
        )

    @torch.inference_mode()
    def predict_scales(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        total: Tensor | None = None
        for scale in scales:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            scaled = resize(image, size)
            found = probabilities(predict(scaled))
            if flip:
                found = (found + probabilities(predict(scaled.flip(-1))).flip(-1)) / 2
            found = resize(found, (height, width))
            total = found if total is None else total + found
        assert total is not None
        return as_scores(total / len(scales))

    return predict_scales


def _starts(size: int, crop: int, stride: int) -> list[int]:
    return [*range(0, size - crop, stride), size - crop]


def _tent(length: int, like: Tensor) -> Tensor:
    """Weights (length,): 1 in the middle, falling linearly, positive at the edges."""
    ramp = torch.arange(1, length + 1, device=like.device, dtype=torch.float32)
    return torch.minimum(ramp, ramp.flip(0)) / ((length + 1) // 2)


def _summed(weight: Tensor, starts: Sequence[int], size: int) -> Tensor:
    total = weight.new_zeros(size)
    for start in starts:
        total[start : start + len(weight)] += weight
    return total
