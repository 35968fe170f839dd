"""From an image to its mask: the call most users need."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ddsm_zoo.data.images import read_image, to_rgb
from ddsm_zoo.data.transforms import ImageTransform
from ddsm_zoo.inference.modes import Precision, full_image
from ddsm_zoo.inference.tiling import MIN_SIDE, Tiling, largest_side, predict_bands
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.layers import resize
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.memory import enough_memory, working_memory
from ddsm_zoo.utils.png import write_png
from ddsm_zoo.utils.visualize import bands, colorize, overlay, overlay_bands, shares
from ddsm_zoo.zoo.factory import create_trained, resolve_data_config

ImageInput = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]

MEMORY = 4 * 2**30
BYTES_PER_PIXEL = 8  # of a picture: 4 as Pillow holds it, 1 of its mask, and some to draw bands of it
PROCESS = 960 * 2**20  # Python and torch with the libraries of its CUDA build, before the first tile


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The prediction for one image: ``mask`` (H, W) uint8 class ids, what they mean, and the RGB image they cover."""

    mask: npt.NDArray[np.uint8]
    labels: LabelSpace
    image: Image.Image

    def color(self) -> Image.Image:
        """The mask in the colours of the classes."""
        return colorize(self.mask, self.labels)

    def overlay(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """The image under the coloured mask, with a legend of the classes; ``alpha`` is the weight of the colours."""
        return overlay(self.image, self.mask, self.labels, alpha=alpha, legend=legend)

    def shares(self) -> dict[str, float]:
        """The fraction of all pixels that each class takes, for every class in the order of the labels."""
        return shares(self.mask, self.labels)

    def save(self, folder: str | os.PathLike[str], stem: str) -> dict[str, Path]:
        """Write ``STEM_ids.png`` (class ids), ``STEM_colour.png`` and ``STEM_overlay.png``; their paths by kind.

        Raises OutputError when one cannot be written, and then writes none.
        """
        parts = bands(self.mask)
        pictures: dict[str, Iterator[npt.NDArray[np.uint8]]] = {
            "ids": (self.mask[rows] for rows in parts),
            "colour": (np.asarray(colorize(self.mask[rows], self.labels)) for rows in parts),
            "overlay": overlay_bands(self.image, self.mask, self.labels),
        }
        paths = {kind: Path(folder) / f"{stem}_{kind}.png" for kind in pictures}
        with contextlib.ExitStack() as whole_files:  # none takes its place before all are written
            for kind, picture in pictures.items():
                write_png(whole_files.enter_context(atomic_path(paths[kind])), picture)
        return paths


class Predictor:
    """A model made ready to label images of any size.

    ``model`` is a name that `create_model` takes, whose pretrained weights are loaded, or a model, which is moved to
    ``device``, put into evaluation mode and laid out channels-last. The device is a GPU where there is one unless
    given. ``precision`` "bf16" computes in 16 bits.

    An image goes through the model as a whole, unless ``tile`` cuts larger ones into tiles of that many pixels a side,
    each of which is labelled as if the model saw all of it; "auto" takes the largest with which the process stays
    within ``memory`` bytes: at most half of them for the model's work, and half for the picture. Then files may hold as
    many pixels as fit there, otherwise as many as Pillow decodes unasked. An image below the ``min_size`` of the
    weights is enlarged to it, and is never cut; its mask has the size of the image all the same.

    Raises what `create_model` raises, and ValueError for a model that takes other than 3 channels or has more than 256
    classes, for tiles that are too small and for another precision.
    """

    def __init__(
        self,
        model: str | Segmenter,
        device: str | torch.device | None = None,
        *,
        precision: Precision = "fp32",
        tile: int | Literal["auto"] | None = None,
        memory: int = MEMORY,
    ) -> None:
        if tile not in (None, "auto") and (not isinstance(tile, int) or tile < MIN_SIDE):
            raise ValueError(f"tile is {tile!r}, expected 'auto' or a number of pixels from {MIN_SIDE} on")
        self.model = prepare(model, device)
        self.labels = model_labels(self.model)
        if len(self.labels) > 256:
            raise ValueError(f"the model has {len(self.labels)} classes, a mask of 8 bits holds at most 256")
        self.preprocess = resolve_data_config(self.model)
        self.transform = ImageTransform(self.preprocess)
        self.predict = full_image(self.model, precision)
        self.tile = tile
        self.memory = memory

    def __call__(self, image: ImageInput, progress: Progress | None = None) -> Segmentation:
        """Label one image: a path, a PIL image or a uint8 array (H, W, 3) RGB or (H, W) grey.

        ``progress(done, total)`` is called after each tile, where there are tiles. Raises what `read` does for a
        path, and ValueError for another kind of array, a model that gives NaN and too little memory.
        """
        if isinstance(image, (str, os.PathLike)):
            image = self.read(image)
        elif isinstance(image, Image.Image):
            image = to_rgb(image)
        height, width = _size(image)
        advice = "cut it by tile='auto' (--tile auto), with less memory (--memory) than is free"
        with enough_memory(f"labelling a picture of {width} x {height} pixels", advice):
            # whole from the start: parts of it among what the tiles free would keep that from being given back
            mask = np.empty((height, width), np.uint8)
            top = 0
            for band in self._scores(image, progress):
                rows = band.shape[2]
                mask[top : top + rows] = _classes(band)
                top += rows
        if not isinstance(image, Image.Image):
            image = Image.fromarray(image)
        return Segmentation(mask=mask, labels=self.labels, image=to_rgb(image))

    def read(self, path: str | os.PathLike[str]) -> Image.Image:
        """The image in a file, turned upright by its EXIF orientation.

        Raises FileNotFoundError, and ImageError for a file that cannot be read or has too many pixels.
        """
        return read_image(Path(path), None if self.tile is None else self.memory // 2 // BYTES_PER_PIXEL)

    def _scores(self, image: Image.Image | npt.NDArray[np.uint8], progress: Progress | None) -> Iterable[Tensor]:
        """The scores (1, K, h, W) of one band of rows after the other."""
        height, width = _size(image)
        side = self._side((height, width))
        if side is None or max(height, width) <= side or self.preprocess.enlargement(height, width) > 1:
            return [resize(self.predict(self.transform(image)[None]), (height, width))]

        def read(rows: slice, columns: slice) -> Tensor:
            if not isinstance(image, Image.Image):
                return self.transform(image[rows, columns])[None]
            box = (columns.start, rows.start, min(columns.stop, width), min(rows.stop, height))
            return self.transform(image.crop(box))[None]

        tiling = Tiling(size=(height, width), side=side, multiple=self.model.backbone.multiple)
        return predict_bands(self.predict, read, tiling, progress=progress)

    def _side(self, size: tuple[int, int]) -> int | None:
        if self.tile != "auto":
            return self.tile
        taken = PROCESS + BYTES_PER_PIXEL * size[0] * size[1]
        return largest_side(size, self._memory_per_pixel, self.model.num_classes, self.memory, taken)

    @functools.cached_property
    def _memory_per_pixel(self) -> float:
        """The bytes that the model works in, with what its convolutions and the allocator need besides."""
        example = torch.zeros(1, 3, MIN_SIDE, MIN_SIDE)
        return 2 * working_memory(lambda: self.predict(example)) / example[0, 0].numel()


def _size(image: Image.Image | npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width; of an array with too few dimensions something that its reader will refuse."""
    height, width, *_ = (image.height, image.width) if isinstance(image, Image.Image) else (*image.shape, 0)
    return height, width


def _classes(scores: Tensor) -> npt.NDArray[np.uint8]:
    """Scores (1, K, h, W) -> class ids (h, W)."""
    if scores.isnan().any():
        raise ValueError("the model gives NaN on this image; its weights are probably damaged")
    return scores[0].argmax(0).to("cpu", torch.uint8).numpy()


def model_labels(model: Segmenter) -> LabelSpace:
    """What the class ids of ``model`` mean; numbered classes for a model whose weights do not say."""
    names = [f"class {index}" for index in range(model.num_classes)]
    return recorded_labels(model) or LabelSpace.from_names(names, ignore_index=max(255, model.num_classes))


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, a GPU where there is one for None. Raises ValueError for one that is not here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # The way to ask whether a device is here, of whatever kind it is.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here, expected cpu, or cuda where there is a GPU"
        ) from error


def prepare(model: str | Segmenter, device: str | torch.device | None) -> Segmenter:
    """The model, or the pretrained one of that name, on its device and ready to predict RGB images.

    A model that was given keeps its layers. One that is made here has its normalisation folded, which is faster and
    changes the logits by rounding alone.
    """
    chosen = choose_device(device)
    if isinstance(model, str):
        model = create_trained(model).fuse()
    if model.config.in_chans != 3:
        raise ValueError(f"the model takes {model.config.in_chans} channels, images are read as RGB, 3 of them")
    return model.to(chosen).eval()


def recorded_labels(model: Segmenter) -> LabelSpace | None:
    """What the class ids of ``model`` mean as far as its weights say, None where they do not."""
    labels = model.provenance.labels
    return labels if labels is not None and len(labels) == model.num_classes else None
