"""Transforms of pixels to the network's input. Images are (3, H, W), masks (H, W) class ids; both move together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ddsm_zoo.config import Preprocess
from ddsm_zoo.errors import ArgumentError


class _Steps:
    """Steps of torchvision, shown one by one when printed."""

    steps: v2.Compose

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.steps})"


class TrainTransform(_Steps):
    """Training augmentation of the paper: horizontal flip, resize by a random factor, random crop.

    It is called with a uint8 image (3, H, W) and an int64 mask (H, W). It returns the normalized float image and the
    int64 mask, both of ``crop_size``. Randomness comes from torch's global generator.

    Args:
        preprocess: Preprocessing of the model.
        crop_size: Size (H, W) of the crop in pixels. Beyond the image, the crop has the mean color.
        ignore_index: Id in the mask beyond the image.
        scale: Smallest and largest resize factor, relative to the image as ``preprocess.min_size`` enlarges it for
            evaluation.
        flip: Probability of a flip, 0 to 1.
        jitter: Strength from 0 to 1 of a change of brightness, contrast and saturation. The hue changes by a quarter of
            it: more would give sky and trees each other's colors.
        blur: Probability of a Gaussian blur of 0.15 to 1.15 pixels, 0 to 1.
        class_crops: Share of the crops, 0 to 1, that show a pixel of a random class. The class is drawn from those in
            the image, all alike, so that small objects are seen as often as roads.

    Raises:
        ValueError: A parameter is out of range.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        crop_size: tuple[int, int],
        ignore_index: int = 255,
        scale: tuple[float, float] = (0.75, 2.0),
        flip: float = 0.5,
        jitter: float = 0.0,
        blur: float = 0.0,
        class_crops: float = 0.0,
    ) -> None:
        if min(crop_size) < 1:
            raise ArgumentError.of("crop_size", crop_size, "a height and a width of at least 1")
        if not 0.0 < scale[0] <= scale[1]:
            raise ArgumentError.of("scale", scale, "a smallest and a largest factor above 0")
        for name, value in (("flip", flip), ("jitter", jitter), ("blur", blur), ("class_crops", class_crops)):
            if not 0.0 <= value <= 1.0:
                raise ArgumentError.of(name, value, "0 to 1")
        fill = {tv_tensors.Image: [round(255 * m) for m in preprocess.mean], tv_tensors.Mask: ignore_index}
        window = RandomResizedWindow(crop_size, scale, preprocess, class_crops, ignore_index)
        steps: list[v2.Transform] = [v2.RandomHorizontalFlip(flip), window]
        if jitter > 0.0:  # before the padding, whose color must stay the mean
            steps.append(v2.ColorJitter(jitter, jitter, jitter, jitter / 4))
        if blur > 0.0:
            steps.append(v2.RandomApply([v2.GaussianBlur(5, (0.15, 1.15))], p=blur))
        steps.append(v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill))
        steps += _normalize(preprocess)
        self.steps = v2.Compose(steps)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return _apply_jointly(self.steps, image, mask)


class EvalTransform(_Steps):
    """Evaluation transform: enlarge the image if ``preprocess.min_size`` asks for it, and normalize it.

    It is called with a uint8 image (3, H, W) and an int64 mask (H, W). It returns the float image (3, H', W') and the
    unchanged mask (H, W).

    Args:
        preprocess: Preprocessing of the model.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self.steps = v2.Compose([Enlarge(preprocess), *_normalize(preprocess)])

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return _apply_jointly(self.steps, image, mask)


class ImageTransform(_Steps):
    """Transform of an image without a mask to a normalized float tensor (C, H', W').

    It is called with a PIL image or a uint8 array (H, W, C), with the C channels of ``preprocess.mean``. H' and W' are
    H and W, or larger if ``preprocess.min_size`` says so. Gray arrays (H, W) are repeated to three channels. Raises
    ValueError for another shape or dtype.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self.channels = len(preprocess.mean)
        self.steps = v2.Compose([Enlarge(preprocess), *_normalize(preprocess)])

    def __call__(self, image: Image.Image | npt.NDArray[np.uint8]) -> Tensor:
        pixels = np.array(image.convert("RGB")) if isinstance(image, Image.Image) else image
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != self.channels or 0 in pixels.shape:
            raise ArgumentError(
                f"got an image array of shape {pixels.shape} and type {pixels.dtype}, "
                f"expected (H, W, {self.channels}) of uint8",
                kind="array",
                name="image",
                got=pixels.shape,
            )
        tensor = torch.tensor(pixels).permute(2, 0, 1)  # (C, H, W); a copy, since the array may be read-only
        result: Tensor = self.steps(tv_tensors.Image(tensor))
        return result.as_subclass(Tensor).contiguous()


def create_transform(
    preprocess: Preprocess,
    *,
    is_training: bool = False,
    crop_size: tuple[int, int] | None = None,
    ignore_index: int = 255,
    scale: tuple[float, float] = (0.75, 2.0),
    flip: float = 0.5,
    jitter: float = 0.0,
) -> ImageTransform | TrainTransform:
    """Create the transform of a model's ``preprocess``: `ImageTransform`, or `TrainTransform` for training.

    Args:
        preprocess: Preprocessing of the model.
        is_training: Create a `TrainTransform`. The other parameters matter only then.
        crop_size: Size (H, W) of the crop in pixels, by default ``preprocess.size``.
        ignore_index: Id in the mask beyond the image.
        scale: Smallest and largest resize factor.
        flip: Probability of a flip, 0 to 1.
        jitter: Strength of the color jitter, 0 to 1.

    Raises:
        ValueError: Training has no crop size.
    """
    if not is_training:
        return ImageTransform(preprocess)
    crop_size = crop_size or preprocess.size
    if crop_size is None:
        raise ArgumentError(
            "training needs a crop size and this preprocessing has none, give crop_size=(height, width)",
            name="crop_size",
        )
    return TrainTransform(preprocess, crop_size, ignore_index, scale, flip, jitter)


class Enlarge(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """Enlarge images, but not masks, to the number of pixels of ``preprocess.min_size``."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def transform(self, inpt: Any, _params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        height, width = inpt.shape[-2:]
        factor = self.preprocess.enlargement(height, width)
        if factor == 1.0:
            return inpt
        size = [round(height * factor), round(width * factor)]
        return tv_tensors.wrap(_resize_bilinear(inpt, size), like=inpt)


class RandomResizedWindow(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """Resize by a random factor and keep a random window of at most ``size`` (H, W), in the reverse order.

    The factor is relative to the image as ``preprocess`` enlarges it.

    Cutting the window from the source first costs the pixels of the crop instead of those of the resized image. Apart
    from rounding the window to whole source pixels, the result is the same. A side shorter than ``size`` stays so.

    The share ``class_crops`` of the windows contains a random pixel of a random class of the mask.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        preprocess: Preprocess,
        class_crops: float = 0.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.size = size
        self.scale = scale
        self.preprocess = preprocess
        self.class_crops = class_crops
        self.ignore_index = ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.scale
        source_size = v2.functional.get_size(flat_inputs[0])  # [H, W]
        factor = self.preprocess.enlargement(*source_size) * (low + (high - low) * torch.rand(()).item())
        shown = self._draw_pixel(flat_inputs) or (None, None)
        sides = [
            _draw_window(side, crop, factor, inside)
            for side, crop, inside in zip(source_size, self.size, shown, strict=True)
        ]
        (top, height, new_height), (left, width, new_width) = sides
        window = {"top": top, "left": left, "height": height, "width": width}
        return {"window": window, "size": [new_height, new_width]}

    def _draw_pixel(self, flat_inputs: list[Any]) -> tuple[int, int] | None:
        """Draw row and column of the pixel that the window must show, None if any window will do."""
        if not self.class_crops or torch.rand(()).item() >= self.class_crops:
            return None
        mask = next(each for each in flat_inputs if isinstance(each, tv_tensors.Mask)).as_subclass(Tensor)
        classes = mask.unique()
        classes = classes[classes != self.ignore_index]
        if not len(classes):
            return None
        pixels = (mask == classes[torch.randint(len(classes), ())]).nonzero()
        row, column = pixels[torch.randint(len(pixels), ())].tolist()
        return row, column

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        cropped = v2.functional.crop(inpt, **params["window"])
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(_resize_nearest(cropped, params["size"]), like=inpt)
        return tv_tensors.wrap(_resize_bilinear(cropped, params["size"]), like=inpt)


def _draw_window(side: int, crop: int, factor: float, inside: int | None = None) -> tuple[int, int, int]:
    """Draw a random source window along one axis: its start, its length, and its length after the resize.

    If ``inside`` is given, the window contains that pixel.
    """
    length = min(side, max(1, round(crop / factor)))
    first, last = 0, side - length
    if inside is not None:
        first, last = max(first, inside - length + 1), min(last, inside)
    start = first + int(torch.randint(last - first + 1, ()).item())
    resized = crop if length < side else min(crop, max(1, round(side * factor)))
    return start, length, resized


def _resize_bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize uint8 (C, H, W) to uint8 of another ``size``."""
    # torch's antialiasing of uint8 crashes on some views, and that of float repeats the first row of an image
    # that becomes one pixel wide
    resized: Tensor = v2.functional.resize(image.float(), list(size), antialias=min(size) > 1)
    return resized.round().to(image.dtype)


def _resize_nearest(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Select the id under each output pixel's center.

    torchvision's own resize of a mask takes the pixel under the corner, half a pixel off the image's bilinear grid.
    """
    for dim, new in zip((-2, -1), size, strict=True):
        old = mask.shape[dim]
        # integer arithmetic of floor((i + 0.5) * old / new)
        mask = mask.index_select(dim, (2 * torch.arange(new) + 1) * old // (2 * new))
    return mask


def _normalize(preprocess: Preprocess) -> list[v2.Transform]:
    return [
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(list(preprocess.mean), list(preprocess.std)),
    ]


def _apply_jointly(steps: v2.Transform, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    new_image, new_mask = steps(tv_tensors.Image(image), tv_tensors.Mask(mask))
    return new_image.as_subclass(Tensor).contiguous(), new_mask.as_subclass(Tensor)
