"""Visualization of masks: colors, overlays with a legend, error maps, confusion matrices."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.labels import Color, LabelSpace

Mask = npt.NDArray[np.integer]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
DISTINCT = 30.0  # distance in CIELAB from which two colors are easy to tell apart under a photo at half strength
_IGNORED = ""  # in a legend, the name of ignored pixels; no class has it
BAND = 2**22  # pixels that are drawn at a time: an image may be hundreds of times larger


def colorize(mask: Mask, labels: LabelSpace) -> Image.Image:
    """Draw the mask (H, W) of class ids in the colors of ``labels``, ignored pixels black.

    Raises ValueError for another shape, a dtype that is not integer and an id that ``labels`` does not know.
    """
    palette = np.array([*labels.palette, BLACK], np.uint8)
    return Image.fromarray(palette[_class_index(mask, labels, "mask")])


@functools.lru_cache(maxsize=64)
def contrast(labels: LabelSpace) -> LabelSpace:
    """Return labels whose colors are easy to tell apart: unchanged if they are already, else with a palette of ours.

    Colors are easy to tell apart if any two are `DISTINCT` or more apart in CIELAB. Each class gets the color of our
    palette that is nearest to its own and still free. Black stays black: overlays leave it out.
    """
    own = _cielab(np.array(labels.palette))
    if len(labels) == 1 or _apart(own, own)[~np.eye(len(labels), dtype=bool)].min() >= DISTINCT:
        return labels
    colors = _distinct_colors(len(labels))
    distance = _apart(own, _cielab(colors))
    palette: dict[int, Color] = {}
    for nearest in distance.ravel().argsort():
        index, color = divmod(int(nearest), len(labels))
        if index not in palette and np.isfinite(distance[index, color]):
            palette[index] = (int(colors[color, 0]), int(colors[color, 1]), int(colors[color, 2]))
            distance[:, color] = np.inf
    chosen = (BLACK if color == BLACK else palette[index] for index, color in enumerate(labels.palette))
    return dataclasses.replace(labels, palette=tuple(chosen))


def shares(mask: Mask, labels: LabelSpace) -> dict[str, float]:
    """Compute the fraction of the labeled pixels that each class takes, by name in the order of ``labels``.

    All are 0 if every pixel is ignored. Raises ValueError as `colorize` does.
    """
    counts = sum(
        np.bincount(_class_index(mask[rows], labels, "mask").ravel(), minlength=len(labels) + 1) for rows in bands(mask)
    )
    known = np.asarray(counts)[: len(labels)]
    return dict(zip(labels.names, (known / max(1, known.sum())).tolist(), strict=True))


def overlay(
    image: Image.Image | npt.NDArray[np.uint8],
    mask: Mask,
    labels: LabelSpace,
    alpha: float = 0.5,
    legend: bool = True,
) -> Image.Image:
    """Blend the image with its colored mask. ``alpha`` is the weight of the colors.

    Pixels that are ignored or of a black class, such as the background of a single class, stay unchanged.

    The legend names the classes present, the largest first. It stands to the right of the image, or below an image too
    low for it. Raises ValueError as `colorize` does, for an image that is not RGB of the mask's size and for an alpha
    outside 0..1.
    """
    parts = list(overlay_bands(image, mask, labels, alpha, legend))
    return Image.fromarray(np.concatenate(parts) if len(parts) > 1 else parts[0])


def overlay_bands(
    image: Image.Image | npt.NDArray[np.uint8],
    mask: Mask,
    labels: LabelSpace,
    alpha: float = 0.5,
    legend: bool = True,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Draw an `overlay` as bands (h, W, 3) from top to bottom."""
    if not 0 <= alpha <= 1:
        raise ArgumentError.of("alpha", alpha, "0 (the image alone) to 1 (the colors alone)")
    parts = bands(mask)
    base = _rgb(image)
    height, width = mask.shape
    _check_same_size("mask", (height, width), "image", (base.height, base.width))
    strip = _legend(base.size, _share_texts(mask, labels) if legend else {}, labels)
    beside = strip is not None and strip.height == height
    colored = np.array([*labels.palette, BLACK]).sum(1) > 0
    for rows in parts:
        part = base.crop((0, rows.start, width, rows.stop))
        index = _class_index(mask[rows], labels, "mask")
        known = Image.fromarray(colored[index])
        blended = np.asarray(Image.composite(Image.blend(part, colorize(mask[rows], labels), alpha), part, known))
        if strip is not None and beside:
            blended = np.concatenate((blended, np.asarray(strip.crop((0, rows.start, strip.width, rows.stop)))), axis=1)
        elif strip is not None:
            blended = np.pad(blended, ((0, 0), (0, strip.width - width), (0, 0)), constant_values=255)
        yield blended
    if strip is not None and not beside:
        yield np.asarray(strip)


def bands(mask: Mask) -> list[slice]:
    """Split the rows of a mask (H, W) into parts of at most `BAND` pixels or one row. Raises ValueError for no mask."""
    _check_shape(mask, "mask")
    height, width = mask.shape
    step = max(1, BAND // width)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def error_map(prediction: Mask, target: Mask, labels: LabelSpace) -> Image.Image:
    """Draw the errors of a prediction, as in Fig. 1 e and f of the paper.

    A wrong pixel has a light tone of its true class's color. A correct one has that color at a quarter of its
    strength. A pixel that ``target`` ignores is black. Raises ValueError as `colorize` does, for either mask, and for
    masks of different sizes.
    """
    predicted = _class_index(prediction, labels, "prediction")
    true = _class_index(target, labels, "target")
    _check_same_size("prediction", predicted.shape, "target", true.shape)
    colors = np.array([*labels.palette, BLACK], np.uint16)
    dim = (colors // 4).astype(np.uint8)
    bright = ((colors + 2 * 255) // 3).astype(np.uint8)
    wrong = (predicted != true) & (true < len(labels))
    return Image.fromarray(np.where(wrong[..., None], bright[true], dim[true]))


def error_sheet(
    image: Image.Image | npt.NDArray[np.uint8], prediction: Mask, target: Mask, labels: LabelSpace
) -> Image.Image:
    """Draw four panels: the image and its label above, the prediction and its `error_map` below.

    The legend has the IoU of each class in this image, the largest class first. Raises ValueError as `error_map` does,
    and for an image of another size.
    """
    errors = error_map(prediction, target, labels)
    base = _rgb(image)
    _check_same_size("image", (base.height, base.width), "target", (errors.height, errors.width))
    panels = {
        "image": base,
        "label": colorize(target, labels),
        "prediction": colorize(prediction, labels),
        "errors: bright, in a tone of the true class": errors,
    }
    line = _line_height(base.size)
    font, strip = ImageFont.load_default(line), 2 * line
    sheet = Image.new("RGB", (2 * base.width, 2 * (strip + base.height)), WHITE)
    pen = ImageDraw.Draw(sheet)
    for place, (name, panel) in enumerate(panels.items()):
        x, y = place % 2 * base.width, place // 2 * (strip + base.height)
        pen.text((x + line // 2, y + line), name, fill=BLACK, font=font, anchor="lm")
        sheet.paste(panel, (x, y + strip))
    return _add_legend(sheet, _iou_texts(prediction, target, labels), labels)


def add_legend(picture: Image.Image, masks: Sequence[Mask], labels: LabelSpace) -> Image.Image:
    """Add a legend with the classes in ``masks`` by their ids, and ignored pixels if there are any.

    Raises ValueError as `colorize` does, for each mask.
    """
    present: set[int] = set()
    for mask in masks:
        present.update(np.unique(_class_index(mask, labels, "mask")).tolist())
    texts = {name: name for index, name in enumerate(labels.names) if index in present}
    return _add_legend(picture, texts | ({_IGNORED: "not labeled"} if len(labels) in present else {}), labels)


def draw_confusion(matrix: npt.NDArray[np.integer], labels: LabelSpace) -> Image.Image:
    """Draw a confusion matrix (K, K), rows the true classes. Each cell has its percentage of the row, darker for more.

    The row of a class without labeled pixels stays empty. Raises ValueError for another shape.
    """
    if matrix.shape != (len(labels), len(labels)):
        raise ArgumentError(
            f"the matrix is {matrix.shape}, expected {len(labels)} rows and columns, one for each class",
            kind="array",
            name="matrix",
            got=matrix.shape,
            expected=(len(labels), len(labels)),
        )
    cell, size = 44, 14  # the side of a cell and the size of the text, in pixels
    font = ImageFont.load_default(size)
    margin = size + max(int(font.getlength(name)) for name in labels.names)
    title, text = 2 * size, "labeled (rows) as predicted (columns), % of row"
    side = margin + cell * len(labels)
    width = max(side, int(font.getlength(text)) + size)
    picture = Image.new("RGB", (width + size, title + side + size), WHITE)
    pen = ImageDraw.Draw(picture)
    pen.text((size // 2, size // 2), text, fill=BLACK, font=font)
    # Column names are written from top to bottom on a strip, which is then rotated to the left
    strip = Image.new("RGB", (margin, cell * len(labels)), WHITE)
    names = ImageDraw.Draw(strip)
    for place, name in enumerate(labels.names):
        middle = (place + 0.5) * cell
        pen.text((margin - size // 2, title + margin + middle), name, BLACK, font, anchor="rm")
        names.text((size // 2, middle), name, BLACK, font, anchor="lm")
    picture.paste(strip.transpose(Image.Transpose.ROTATE_90), (margin, title))
    totals = matrix.sum(1)
    for row, total in enumerate(totals):
        for column in range(len(labels)) if total else ():
            share = float(matrix[row, column] / total)
            corner = (margin + column * cell, title + margin + row * cell)
            tone = round(255 * (1 - share))
            pen.rectangle([*corner, corner[0] + cell - 1, corner[1] + cell - 1], fill=(tone, tone, 255), outline=WHITE)
            center = (corner[0] + cell // 2, corner[1] + cell // 2)
            pen.text(center, f"{100 * share:.1f}", WHITE if share > 0.5 else BLACK, font, anchor="mm")
    return picture


def _distinct_colors(count: int) -> npt.NDArray[np.uint8]:
    """Choose ``count`` colors (count, 3): each is the color of a grid that is farthest from those before it."""
    steps = np.linspace(0, 255, max(8, math.ceil((2.5 * count) ** (1 / 3))))
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3).round()
    lab = _cielab(grid)
    usable = (lab[:, 0] > 30) & (lab[:, 0] < 90)  # neither the black of ignored pixels nor the white of the legend
    grid, lab = grid[usable], lab[usable]
    chosen = [int(np.hypot(lab[:, 1], lab[:, 2]).argmax())]
    free = _apart(lab, np.concatenate((_cielab(np.array([BLACK])), lab[chosen]))).min(1)
    while len(chosen) < count:
        chosen.append(int(free.argmax()))
        free = np.minimum(free, _apart(lab, lab[chosen[-1:]])[:, 0])
    return grid[chosen].astype(np.uint8)


def _cielab(colors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Convert sRGB colors (N, 3), 0 to 255, to CIELAB with the white point D65."""
    value = colors / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (linear @ to_xyz.T / to_xyz.sum(1)).T
    x, y, z = (np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116) for part in (x, y, z))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _apart(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the distances (N, M) between N and M colors (N, 3), (M, 3)."""
    distances: npt.NDArray[np.float64] = np.linalg.norm(first[:, None] - second, axis=-1)
    return distances


def _class_index(mask: Mask, labels: LabelSpace, name: str) -> npt.NDArray[np.int64]:
    """Check the mask and map ignored pixels to one more class after the last."""
    _check_shape(mask, name)
    known = (mask >= 0) & (mask < len(labels))
    strange = mask[~known & (mask != labels.ignore_index)]
    if strange.size:
        raise ArgumentError(
            f"the {name} holds id {strange[0]}, expected 0 to {len(labels) - 1} or {labels.ignore_index} for ignored",
            kind="unknown-id",
            name=name,
            got=int(strange[0]),
        )
    return np.where(known, mask.astype(np.int64), len(labels))


def _check_shape(mask: Mask, name: str) -> None:
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or 0 in mask.shape:
        shape = mask.shape if isinstance(mask, np.ndarray) else type(mask).__name__
        expected = "an array (H, W) of class ids"
        raise ArgumentError.of(name, shape, expected, kind="array")
    if not np.issubdtype(mask.dtype, np.integer):
        raise ArgumentError.of(name, str(mask.dtype), "whole numbers such as uint8", kind="array")


def _check_same_size(name: str, size: tuple[int, ...], other: str, expected: tuple[int, ...]) -> None:
    """Raise ValueError for two sizes (height, width) that differ."""
    if size != expected:
        raise ArgumentError(
            f"the {name} is {size[1]} x {size[0]} pixels and the {other} {expected[1]} x {expected[0]}, expected the "
            "same size",
            kind="array",
            name=name,
            got=size,
            expected=expected,
        )


def _rgb(image: Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ArgumentError.of("image", got, "a picture or a uint8 array (H, W, 3)", kind="array")
    return Image.fromarray(image)


def _iou_texts(prediction: Mask, target: Mask, labels: LabelSpace) -> dict[str, str]:
    """Format name and IoU of each class on the pixels that ``target`` does not ignore, by name, the largest first."""
    predicted, true = _class_index(prediction, labels, "prediction"), _class_index(target, labels, "target")
    counted, size = true < len(labels), len(labels) + 1
    right = np.bincount(true[counted & (predicted == true)], minlength=size)
    either = np.bincount(true[counted], minlength=size) + np.bincount(predicted[counted], minlength=size) - right
    present = sorted(np.flatnonzero(either[:-1]), key=lambda index: -int(either[index]))
    return {labels.names[index]: f"{labels.names[index]} IoU {right[index] / either[index]:.1%}" for index in present}


def _line_height(size: tuple[int, int]) -> int:
    """Return the text size in pixels that is readable on an image of ``size``."""
    return max(12, min(32, min(size) // 30))


def _share_texts(mask: Mask, labels: LabelSpace) -> dict[str, str]:
    """Format name and share of the mask of each class present, by name, the largest first."""
    share = shares(mask, labels)
    present = sorted((name for name in share if share[name] > 0), key=lambda name: -share[name])
    return {name: f"{name} {share[name]:.1%}" for name in present}


def _add_legend(picture: Image.Image, texts: dict[str, str], labels: LabelSpace) -> Image.Image:
    """Add the `_legend` to an image."""
    legend = _legend(picture.size, texts, labels)
    if legend is None:
        return picture
    beside = legend.height == picture.height
    right, bottom = (picture.width, 0) if beside else (0, picture.height)
    sheet = Image.new("RGB", (max(picture.width, right + legend.width), bottom + legend.height), WHITE)
    sheet.paste(picture)
    sheet.paste(legend, (right, bottom))
    return sheet


def _legend(size: tuple[int, int], texts: dict[str, str], labels: LabelSpace) -> Image.Image | None:
    """Draw swatches and texts of the given classes, for an image of ``size`` (W, H). None without any.

    The legend stands to the right of the image and has its height. If the image is too low, it stands below and is at
    least as wide.
    """
    if not texts:
        return None
    colors = {_IGNORED: BLACK, **dict(zip(labels.names, labels.palette, strict=True))}
    line = _line_height(size)
    gap = line // 2
    font = ImageFont.load_default(line)
    entry = gap + line + gap + max(int(font.getlength(text)) + 1 for text in texts.values())
    beside = size[1] >= gap + (line + gap) * len(texts)
    columns = 1 if beside else max(1, (size[0] - gap) // entry)
    width, height = gap + entry * columns, gap + (line + gap) * math.ceil(len(texts) / columns)
    strip = Image.new("RGB", (width, size[1]) if beside else (max(size[0], width), height), WHITE)
    pen = ImageDraw.Draw(strip)
    for place, (name, text) in enumerate(texts.items()):
        x = gap + entry * (place % columns)
        y = gap + (line + gap) * (place // columns)
        pen.rectangle([x, y, x + line - 1, y + line - 1], fill=colors[name], outline=BLACK)
        pen.text((x + line + gap, y + line // 2), text, fill=BLACK, font=font, anchor="lm")
    return strip
