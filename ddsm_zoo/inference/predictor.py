"""Predict the segmentation mask of an image."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ddsm_zoo.data.depth import require_bits
from ddsm_zoo.data.images import picture_box, read_image, to_rgb
from ddsm_zoo.data.transforms import ImageTransform
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.inference.modes import full_image
from ddsm_zoo.inference.precision import Precision, choose_precision, middle
from ddsm_zoo.inference.preparation import model_labels, model_threshold, prepare
from ddsm_zoo.inference.scores import predict_ids
from ddsm_zoo.inference.tiling import MIN_SIDE, Tiling, largest_side, predict_bands
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.layers import resize
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.memory import enough_memory, working_memory
from ddsm_zoo.utils.png import write_png
from ddsm_zoo.utils.visualize import bands, colorize, contrast, overlay, overlay_bands, shares
from ddsm_zoo.zoo.factory import resolve_data_config

Palette = Literal["contrast", "own"]
"""Colors of overlays: the labels' own, or ones that are easy to tell apart where the labels' own are not."""

Ids = npt.NDArray[np.unsignedinteger[Any]]
ImageInput = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]

MEMORY = 4 * 2**30
UNFAMILIAR = 0.6  # mean confidence that trained models usually exceed on images of their own kind
BYTES_PER_PIXEL = 8  # of a picture: 4 in Pillow, 1 in its mask, and some to draw bands of it
PROCESS = 960 * 2**20  # Python and torch with the libraries of its CUDA build, before the first tile


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Prediction for one image.

    Attributes:
        mask: Class ids (H, W), uint8, and uint16 for more than 256 classes. A model of a single class gives 0 for the
            background and 1 for the class.
        labels: Names and colors of the class ids.
        image: RGB image of the same size.
        confidence: Mean over the pixels of the probability that the model gives to its class, 0 to 1. None if unknown.
        palette: Colors of the overlay.
    """

    mask: Ids
    labels: LabelSpace
    image: Image.Image
    confidence: float | None = None
    palette: Palette = "contrast"

    @property
    def overlay_labels(self) -> LabelSpace:
        """Labels with the colors of the overlay: those of `contrast`, or unchanged for the palette "own"."""
        return contrast(self.labels) if self.palette == "contrast" else self.labels

    def color(self) -> Image.Image:
        """Return the mask in the colors of the classes."""
        return colorize(self.mask, self.labels)

    def overlay(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """Return the image under the colored mask.

        Args:
            alpha: Weight of the colors, 0 to 1.
            legend: Add a legend of the classes.
        """
        return overlay(self.image, self.mask, self.overlay_labels, alpha=alpha, legend=legend)

    def shares(self) -> dict[str, float]:
        """Return the fraction of all pixels (0 to 1) of every class, in the order of the labels."""
        return shares(self.mask, self.labels)

    def save(self, folder: str | os.PathLike[str], stem: str) -> dict[str, Path]:
        """Write ``STEM_ids.png`` (class ids), ``STEM_color.png`` (the labels' own colors) and ``STEM_overlay.png``.

        Args:
            folder: Target folder.
            stem: Start of the file names.

        Returns:
            Paths by the kinds ids, color and overlay.

        Raises:
            OutputError: A file cannot be written. Then none is written.
        """
        parts = bands(self.mask)
        pictures: dict[str, Iterator[Ids]] = {
            "ids": (self.mask[rows] for rows in parts),
            "color": (np.asarray(colorize(self.mask[rows], self.labels)) for rows in parts),
            "overlay": overlay_bands(self.image, self.mask, self.overlay_labels),
        }
        paths = {kind: Path(folder) / f"{stem}_{kind}.png" for kind in pictures}
        with contextlib.ExitStack() as whole_files:  # no file is moved into place before all are written
            for kind, picture in pictures.items():
                write_png(whole_files.enter_context(atomic_path(paths[kind])), picture)
        return paths


class Predictor:
    """Label images of any size with one model.

    An image below the ``min_size`` of the weights is enlarged to it and never cut into tiles. The mask has the size of
    the original image in every case.

    Args:
        model: Model, or a name that `create_model` takes, whose pretrained weights are loaded. The model is moved to
            ``device`` and converted to channels-last memory. It stays in evaluation mode: call ``model.train()`` before
            you train it on. DataParallel, DistributedDataParallel and averages of weights are unwrapped.
        device: Torch device. Unless given, a GPU if there is one.
        precision: "fp32", or "bf16" to compute in 16 bits. "auto" takes bf16 if it is faster on this machine and finds
            the same classes in the middle of the first image, see `inference.precision.choose_precision`.
        tile: Side of the tiles in pixels. Larger images are cut into tiles, and each tile is labeled as if the model
            saw the whole image. "auto" takes the largest side with which the process stays within ``memory``. None runs
            the model on the whole image.
        memory: Memory limit in bytes for ``tile="auto"``: at most half for the model's work and half for the picture.
            With tiles, files may hold as many pixels as fit into that half. Without tiles, Pillow's default limit
            applies.
        palette: Colors of overlays. "own" are those of the labels. "contrast" replaces them by others if two of them
            are hard to tell apart.
        threshold: For a model of a single class, the probability above which a pixel is the class. Unless given, that
            of the weights.
        bits: Bits in use of images of 16 bits, such as 12. Unless given, those that the file states, or 16.
        trim: Leave out rows and columns of black at the border of an image. They get the class of the nearest pixel
            of the picture.

    Raises:
        ValueError: The model does not take 3 channels, the tiles are too small, ``precision``,
            ``palette`` or ``device`` is unknown, or ``threshold`` is not between 0 and 1 or given for
            several classes.
        Exception: Anything that `create_model` raises.

    Examples:
        >>> import ddsm_zoo, numpy as np
        >>> model = ddsm_zoo.create_model("uper_ddsm_tiny", labels=["road", "car", "other"])
        >>> result = ddsm_zoo.Predictor(model)(np.zeros((64, 96, 3), np.uint8))  # or the path of an image
        >>> result.mask.shape, list(result.shares())
        ((64, 96), ['road', 'car', 'other'])
    """

    def __init__(  # noqa: PLR0913 - each is a choice of its own, as in the command
        self,
        model: str | Segmenter,
        device: str | torch.device | None = None,
        *,
        precision: Precision = "fp32",
        tile: int | Literal["auto"] | None = None,
        memory: int = MEMORY,
        palette: Palette = "contrast",
        threshold: float | None = None,
        bits: int | None = None,
        trim: bool = False,
    ) -> None:
        require_bits(bits)
        if palette not in get_args(Palette):
            raise ArgumentError.of("palette", palette, f"{' or '.join(get_args(Palette))}", shown=repr(palette))
        if tile not in (None, "auto") and (not isinstance(tile, int) or tile < MIN_SIDE):
            raise ArgumentError.of("tile", tile, f"'auto' or a number of pixels from {MIN_SIDE} on", shown=repr(tile))
        self.model = prepare(model, device)
        self.labels = model_labels(self.model)
        self.preprocess = resolve_data_config(self.model)
        self.transform = ImageTransform(self.preprocess)
        self.precision: Precision = precision
        self.predict = full_image(self.model, precision)
        self.threshold = model_threshold(self.model, threshold)
        self.tile = tile
        self.memory = memory
        self.palette: Palette = palette
        self.bits = bits
        self.trim = trim

    @property
    def domain(self) -> str | None:
        """Description of the images that the weights were trained for, None if unknown."""
        weights = self.model.provenance.weights
        if weights is None or weights.dataset == "unknown":
            return None
        return weights.domain or f"images of {weights.dataset}"

    @property
    def familiar(self) -> float:
        """Mean confidence below which an image counts as unlike the `domain`: measured, or `UNFAMILIAR`."""
        weights = self.model.provenance.weights
        return (weights and weights.familiar) or UNFAMILIAR

    @property
    def familiar_is_measured(self) -> bool:
        """True if `familiar` was measured for these weights."""
        weights = self.model.provenance.weights
        return weights is not None and weights.familiar is not None

    def __call__(self, image: ImageInput, progress: Progress | None = None) -> Segmentation:
        """Label one image.

        Args:
            image: Path, PIL image, or uint8 array (H, W, 3) RGB or (H, W) gray.
            progress: Called as ``progress(done, total)`` after each tile, if there are tiles.

        Returns:
            The mask (H, W) with its labels and the RGB image.

        Raises:
            ValueError: The array has another shape or type, the model gives NaN, or memory does not suffice.
            FileNotFoundError: The path does not exist.
            ImageError: The file cannot be read or has too many pixels.
        """
        if isinstance(image, (str, os.PathLike)):
            image = self.read(image)
        elif isinstance(image, Image.Image):
            image = to_rgb(image)
        box = picture_box(_picture(image)) if self.trim else None
        if box is None:
            return self._label(image, progress)
        whole = _picture(image)
        inner = self._label(whole.crop(box), progress)
        margins = ((box[1], whole.height - box[3]), (box[0], whole.width - box[2]))
        return dataclasses.replace(inner, mask=np.pad(inner.mask, margins, mode="edge"), image=whole)

    def _label(self, image: Image.Image | npt.NDArray[np.uint8], progress: Progress | None) -> Segmentation:
        height, width = _size(image)
        advice = "use tile='auto' (--tile auto) and a memory limit (--memory) below the free memory"
        with enough_memory(f"segment an image of {width} x {height} pixels", advice):
            # allocated at once: parts allocated between tiles would keep the freed memory from being returned
            mask: Ids = np.empty((height, width), np.uint8 if len(self.labels) <= 256 else np.uint16)
            top, certain = 0, 0.0
            for band in self._scores(image, progress):
                rows = band.shape[2]
                mask[top : top + rows] = _classes(band, self.threshold)
                certain += _certainty(band, self.threshold)
                top += rows
        return Segmentation(
            mask=mask,
            labels=self.labels,
            image=_picture(image),
            confidence=certain / mask.size,
            palette=self.palette,
        )

    def read(self, path: str | os.PathLike[str]) -> Image.Image:
        """Read an image file and turn it upright by its EXIF orientation.

        Args:
            path: Image file.

        Raises:
            FileNotFoundError: The file does not exist.
            ImageError: The file cannot be read or has too many pixels.
        """
        limit = None if self.tile is None else self.memory // 2 // BYTES_PER_PIXEL
        return read_image(Path(path), limit, self.bits)

    def _scores(self, image: Image.Image | npt.NDArray[np.uint8], progress: Progress | None) -> Iterable[Tensor]:
        """Yield scores (1, K, h, W), one band of rows after the other."""
        height, width = _size(image)
        if self.precision == "auto":
            self._choose_precision(image)
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

    def _choose_precision(self, image: Image.Image | npt.NDArray[np.uint8]) -> None:
        """Choose by a part of the picture, before ``predict`` sees a tile of it or an empty example."""
        rows, columns = middle(*_size(image))
        if isinstance(image, Image.Image):
            part = self.transform(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
        else:
            part = self.transform(image[rows, columns])
        like = next(self.model.parameters())
        choose_precision(self.model, part[None].to(like.device, like.dtype))

    def _side(self, size: tuple[int, int]) -> int | None:
        if self.tile != "auto":
            return self.tile
        taken = PROCESS + BYTES_PER_PIXEL * size[0] * size[1]
        return largest_side(size, self._memory_per_pixel, self.model.num_classes, self.memory, taken)

    @functools.cached_property
    def _memory_per_pixel(self) -> float:
        """Bytes per pixel of the model's work, with a margin for convolution workspaces and the allocator."""
        example = torch.zeros(1, 3, MIN_SIDE, MIN_SIDE)
        return 2 * working_memory(lambda: self.predict(example)) / example[0, 0].numel()


def _picture(image: Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    return to_rgb(image if isinstance(image, Image.Image) else Image.fromarray(image))


def _size(image: Image.Image | npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Return height and width. An array with too few dimensions gets 0, which its reader rejects."""
    height, width, *_ = (image.height, image.width) if isinstance(image, Image.Image) else (*image.shape, 0)
    return height, width


def _classes(scores: Tensor, threshold: float | None) -> npt.NDArray[np.integer[Any]]:
    """Convert scores (1, K, h, W) to class ids (h, W)."""
    if scores.isnan().any():
        raise ArgumentError(
            "the model gives NaN on this image; check its weights, or use fp32 (--precision fp32)", kind="nan-scores"
        )
    return predict_ids(scores, threshold)[0].to("cpu", torch.uint8 if scores.shape[1] <= 256 else torch.int32).numpy()


def _certainty(scores: Tensor, threshold: float | None) -> float:
    """Sum the probability of the predicted class over the pixels of logits (1, K, h, W)."""
    parts = torch.split(scores, 64, dim=2)  # few rows at a time: probabilities of all would double the memory
    if scores.shape[1] == 1:  # the sigmoid of the class, or 1 minus it for the background
        signs = (2 * predict_ids(part, threshold) - 1 for part in parts)
        found = ((sign * part[:, 0]).sigmoid() for sign, part in zip(signs, parts, strict=True))
    else:
        found = (part.softmax(1).amax(1) for part in parts)
    return sum(float(each.sum(dtype=torch.float64)) for each in found)
