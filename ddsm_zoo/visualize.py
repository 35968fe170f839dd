"""Masks made visible: colours, overlays with a legend, maps of errors, the confusion between classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ddsm_zoo.labels import LabelSpace

Mask = npt.NDArray[np.integer]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def colourise(mask: Mask, labels: LabelSpace) -> Image.Image:
    """The mask (H, W) of class ids in the colours of ``labels``, ignored pixels black.

    Raises ValueError for another shape, a dtype that is not whole numbers and an id that ``labels`` does not know.
    """
    palette = np.array([*labels.palette, BLACK], np.uint8)
    return Image.fromarray(palette[_class_index(mask, labels, "mask")])


def shares(mask: Mask, labels: LabelSpace) -> dict[str, float]:
    """The fraction of the labelled pixels that each class takes, by name in the order of ``labels``.

    All are 0 where every pixel is ignored. Raises ValueError as `colourise` does.
    """
    counts = np.bincount(_class_index(mask, labels, "mask").ravel(), minlength=len(labels) + 1)[: len(labels)]
    return dict(zip(labels.names, (counts / max(1, counts.sum())).tolist(), strict=True))


def overlay(
    image: Image.Image | npt.NDArray[np.uint8],
    mask: Mask,
    labels: LabelSpace,
    alpha: float = 0.5,
    legend: bool = True,
) -> Image.Image:
    """The image under its coloured mask; ``alpha`` is the weight of the colours, ignored pixels stay as they are.

    The legend names the classes present, the largest first: beside the picture, or below one too low for it. Raises
    ValueError as `colourise` does, for an image that is no RGB picture of the mask's size and for an alpha not in 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected 0 (the image alone) to 1 (the colours alone)")
    index = _class_index(mask, labels, "mask")
    base = _rgb(image)
    if base.size != (index.shape[1], index.shape[0]):
        raise ValueError(
            f"the mask is {index.shape[1]} x {index.shape[0]} pixels and the image {base.width} x {base.height}, "
            "expected the same size"
        )
    known = Image.fromarray(index < len(labels))
    blended = Image.composite(Image.blend(base, colourise(mask, labels), alpha), base, known)
    if not legend:
        return blended
    return _add_legend(blended, shares(mask, labels), labels)


def error_map(prediction: Mask, target: Mask, labels: LabelSpace) -> Image.Image:
    """Where a prediction errs, as in Fig. 1 e and f of the paper.

    A wrong pixel shines in a light tone of its true class's colour; a right one shows that colour at a quarter of its
    strength; a pixel that ``target`` ignores is black. Raises ValueError as `colourise` does, for either mask, and for
    masks of different sizes.
    """
    predicted = _class_index(prediction, labels, "prediction")
    true = _class_index(target, labels, "target")
    if predicted.shape != true.shape:
        raise ValueError(
            f"the prediction is {predicted.shape[1]} x {predicted.shape[0]} pixels and the target "
            f"{true.shape[1]} x {true.shape[0]}, expected the same size"
        )
    colours = np.array([*labels.palette, BLACK], np.uint16)
    dim = (colours // 4).astype(np.uint8)
    bright = ((colours + 2 * 255) // 3).astype(np.uint8)
    wrong = (predicted != true) & (true < len(labels))
    return Image.fromarray(np.where(wrong[..., None], bright[true], dim[true]))


def error_sheet(
    image: Image.Image | npt.NDArray[np.uint8], prediction: Mask, target: Mask, labels: LabelSpace
) -> Image.Image:
    """Four pictures in one: the image and its label above, the prediction and its `error_map` below.

    Raises ValueError as `error_map` does, and for an image of another size.
    """
    errors = error_map(prediction, target, labels)
    base = _rgb(image)
    if base.size != errors.size:
        raise ValueError(
            f"the image is {base.width} x {base.height} pixels and its masks {errors.width} x {errors.height}, "
            "expected the same size"
        )
    sheet = Image.new("RGB", (2 * base.width, 2 * base.height))
    panels = (base, colourise(target, labels), colourise(prediction, labels), errors)
    for place, panel in enumerate(panels):
        sheet.paste(panel, (place % 2 * base.width, place // 2 * base.height))
    return sheet


def confusion_picture(matrix: npt.NDArray[np.integer], labels: LabelSpace) -> Image.Image:
    """A confusion matrix (K, K), rows the true classes: in each cell the percentage of its row, the darker the more.

    The row of a class that has no labelled pixel stays empty. Raises ValueError for another shape.
    """
    if matrix.shape != (len(labels), len(labels)):
        raise ValueError(f"the matrix is {matrix.shape}, expected {len(labels)} rows and columns, one for each class")
    cell, size = 44, 14  # the side of a cell and the size of the text, in pixels
    font = ImageFont.load_default(size)
    margin = size + max(int(font.getlength(name)) for name in labels.names)
    title = 2 * size
    side = margin + cell * len(labels)
    picture = Image.new("RGB", (side + size, title + side + size), WHITE)
    pen = ImageDraw.Draw(picture)
    pen.text((size // 2, size // 2), "labelled (rows) as predicted (columns), % of row", fill=BLACK, font=font)
    # The names of columns are written from top to bottom on a strip, which is then turned to the left
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
            centre = (corner[0] + cell // 2, corner[1] + cell // 2)
            pen.text(centre, f"{100 * share:.1f}", WHITE if share > 0.5 else BLACK, font, anchor="mm")
    return picture


def _class_index(mask: Mask, labels: LabelSpace, name: str) -> npt.NDArray[np.int64]:
    """The checked mask with the ignored pixels as one more class after the last."""
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or 0 in mask.shape:
        shape = mask.shape if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"the {name} is {shape}, expected an array (H, W) of class ids")
    if not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"the {name} holds {mask.dtype}, expected whole numbers such as uint8")
    known = (mask >= 0) & (mask < len(labels))
    strange = mask[~known & (mask != labels.ignore_index)]
    if strange.size:
        raise ValueError(
            f"the {name} holds id {strange[0]}, expected 0 to {len(labels) - 1} or {labels.ignore_index} for ignored"
        )
    return np.where(known, mask.astype(np.int64), len(labels))


def _rgb(image: Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the image is {got}, expected a picture or a uint8 array (H, W, 3)")
    return Image.fromarray(image)


def _add_legend(picture: Image.Image, share: dict[str, float], labels: LabelSpace) -> Image.Image:
    """The picture with swatches and names beside it, or below it where it is too low for them."""
    colours = dict(zip(labels.names, labels.palette, strict=True))
    present = sorted((name for name in share if share[name] > 0), key=lambda name: -share[name])
    if not present:
        return picture
    line = max(12, min(32, min(picture.size) // 30))  # the side of a swatch and the size of the text, in pixels
    gap = line // 2
    font = ImageFont.load_default(line)
    texts = {name: f"{name} {share[name]:.1%}" for name in present}
    entry = gap + line + gap + max(int(font.getlength(text)) + 1 for text in texts.values())
    beside = picture.height >= gap + (line + gap) * len(present)
    columns = 1 if beside else max(1, (picture.width - gap) // entry)
    rows = -(-len(present) // columns)
    width, height = gap + entry * columns, gap + (line + gap) * rows
    if beside:
        origin, size = (picture.width, 0), (picture.width + width, picture.height)
    else:
        origin, size = (0, picture.height), (max(picture.width, width), picture.height + height)
    sheet = Image.new("RGB", size, WHITE)
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for place, name in enumerate(present):
        x = origin[0] + gap + entry * (place % columns)
        y = origin[1] + gap + (line + gap) * (place // columns)
        pen.rectangle([x, y, x + line - 1, y + line - 1], fill=colours[name], outline=BLACK)
        pen.text((x + line + gap, y + line // 2), texts[name], fill=BLACK, font=font, anchor="lm")
    return sheet
