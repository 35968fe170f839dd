"""From pixels to the network's input. Images are (3, H, W), masks are (H, W) class ids; both move together."""

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


class TrainTransform:
    """The paper's augmentation: horizontal flip, resize by a random factor in ``scale``, crop to ``crop_size`` (H, W).

    ``scale`` counts from the image as evaluation enlarges it, by ``preprocess.min_size``. What the crop shows beyond
    the image is the mean colour, and ``ignore_index`` in the mask. ``flip`` is a probability. ``jitter`` in 0..1 is
    the strength of a change of brightness, contrast and saturation, and a quarter of it the turn of the hue: more would
    give sky and trees each other's colours. Draws from torch's global generator.

    Called with a uint8 image (3, H, W) and an int64 mask (H, W), returns the normalised float image and the int64
    mask, both of ``crop_size``. Raises ValueError for parameters out of range.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        crop_size: tuple[int, int],
        ignore_index: int = 255,
        scale: tuple[float, float] = (0.75, 2.0),
        flip: float = 0.5,
        jitter: float = 0.0,
    ) -> None:
        if min(crop_size) < 1:
            raise ValueError(f"crop_size is {crop_size}, expected a height and a width of at least 1")
        if not 0.0 < scale[0] <= scale[1]:
            raise ValueError(f"scale is {scale}, expected a smallest and a largest factor above 0")
        for name, value in (("flip", flip), ("jitter", jitter)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}, expected 0 to 1")
        fill = {tv_tensors.Image: [round(255 * m) for m in preprocess.mean], tv_tensors.Mask: ignore_index}
        steps: list[v2.Transform] = [v2.RandomHorizontalFlip(flip), RandomResizedWindow(crop_size, scale, preprocess)]
        if jitter > 0.0:  # before the padding, whose colour must stay the mean
            steps.append(v2.ColorJitter(jitter, jitter, jitter, jitter / 4))
        steps.append(v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill))
        steps.append(_normalize(preprocess))
        self.steps = v2.Compose(steps)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return _apply_jointly(self.steps, image, mask)


class EvalTransform:
    """Enlarges the image if ``preprocess.min_size`` asks for that, and normalises it; the mask stays as it is.

    (uint8 (3, H, W), int64 (H, W)) -> (float (3, H', W'), int64 (H, W)).
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self.steps = v2.Compose([Enlarge(preprocess), _normalize(preprocess)])

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return _apply_jointly(self.steps, image, mask)


class ImageTransform:
    """A PIL image or a uint8 array (H, W, C), C channels as ``preprocess.mean`` has, to a normalised (C, H', W') float.

    H' and W' are H and W, or larger where ``preprocess.min_size`` says so. Grey arrays (H, W) are repeated to three
    channels. Raises ValueError for another shape or dtype.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self.channels = len(preprocess.mean)
        self.steps = v2.Compose([Enlarge(preprocess), _normalize(preprocess)])

    def __call__(self, image: Image.Image | npt.NDArray[np.uint8]) -> Tensor:
        pixels = np.array(image.convert("RGB")) if isinstance(image, Image.Image) else image
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != self.channels or 0 in pixels.shape:
            raise ValueError(
                f"got an image array of shape {pixels.shape} and type {pixels.dtype}, "
                f"expected (H, W, {self.channels}) of uint8"
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
    """The transform that belongs to a model's ``preprocess``: `ImageTransform`, or `TrainTransform` for training.

    The crop is ``preprocess.size`` unless given; the other parameters only matter in training. Raises ValueError when
    training has no crop size at all.
    """
    if not is_training:
        return ImageTransform(preprocess)
    crop_size = crop_size or preprocess.size
    if crop_size is None:
        raise ValueError("training needs a crop size and this preprocessing has none, give crop_size=(height, width)")
    return TrainTransform(preprocess, crop_size, ignore_index, scale, flip, jitter)


class Enlarge(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """Images, but not masks, as large as ``preprocess.min_size`` wants them."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ARG002 - torchvision's signature
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        height, width = inpt.shape[-2:]
        factor = self.preprocess.enlargement(height, width)
        if factor == 1.0:
            return inpt
        size = [round(height * factor), round(width * factor)]
        return tv_tensors.wrap(_resize_bilinear(inpt, size), like=inpt)


class RandomResizedWindow(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """Resize by a random factor and keep a random window of at most ``size`` (H, W), in the other order.

    The factor is relative to the image as ``preprocess`` enlarges it.

    Cutting the window out of the source first costs the pixels of the crop instead of those of the resized image. Up to
    the rounding of the window to whole source pixels, the result is the same. A side shorter than ``size`` stays so.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float], preprocess: Preprocess) -> None:
        super().__init__()
        self.size = size
        self.scale = scale
        self.preprocess = preprocess

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.scale
        source_size = v2.functional.get_size(flat_inputs[0])  # [H, W]
        factor = self.preprocess.enlargement(*source_size) * (low + (high - low) * torch.rand(()).item())
        sides = [_draw_window(side, crop, factor) for side, crop in zip(source_size, self.size, strict=True)]
        (top, height, new_height), (left, width, new_width) = sides
        window = {"top": top, "left": left, "height": height, "width": width}
        return {"window": window, "size": [new_height, new_width]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        cropped = v2.functional.crop(inpt, **params["window"])
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(_resize_nearest(cropped, params["size"]), like=inpt)
        return tv_tensors.wrap(_resize_bilinear(cropped, params["size"]), like=inpt)


def _draw_window(side: int, crop: int, factor: float) -> tuple[int, int, int]:
    """Along one axis: start and length of a random source window, and its length after the resize."""
    length = min(side, max(1, round(crop / factor)))
    start = int(torch.randint(side - length + 1, ()).item())
    resized = crop if length < side else min(crop, max(1, round(side * factor)))
    return start, length, resized


def _resize_bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """uint8 (C, H, W) to uint8 of another ``size``."""
    # torch's antialiasing of uint8 crashes on some views, and that of float repeats the first row of an image
    # that becomes one pixel wide
    resized: Tensor = v2.functional.resize(image.float(), list(size), antialias=min(size) > 1)
    return resized.round().to(image.dtype)


def _resize_nearest(mask: Tensor, size: Sequence[int]) -> Tensor:
    """The id under each output pixel's centre.

    torchvision's own resize of a mask takes the pixel under the corner, half a pixel off the image's bilinear grid.
    """
    for dim, new in zip((-2, -1), size, strict=True):
        old = mask.shape[dim]
        # integer arithmetic of floor((i + 0.5) * old / new)
        mask = mask.index_select(dim, (2 * torch.arange(new) + 1) * old // (2 * new))
    return mask


def _normalize(preprocess: Preprocess) -> v2.Transform:
    return v2.Compose(
        [
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(list(preprocess.mean), list(preprocess.std)),
        ]
    )


def _apply_jointly(steps: v2.Transform, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    new_image, new_mask = steps(tv_tensors.Image(image), tv_tensors.Mask(mask))
    return new_image.as_subclass(Tensor).contiguous(), new_mask.as_subclass(Tensor)
