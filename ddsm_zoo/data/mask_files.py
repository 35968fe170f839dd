"""Mask files as they are stored: values, palette, and what else the file says of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddsm_zoo.data.depth import low_bytes
from ddsm_zoo.data.facts import image_facts
from ddsm_zoo.data.images import ImageError, decode_image, is_lossy, open_header, upright
from ddsm_zoo.labels import Color

Stored = npt.NDArray[np.integer[Any]]

# An image in another format may be compressed with loss.
_LOSSLESS = ("BMP", "GIF", "PNG", "PPM")


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskFile:
    """One mask as its file stores it.

    Attributes:
        path: File of the mask.
        values: Stored ids or indices of a palette (H, W), unsigned, or colors (H, W, 3), uint8.
        palette: Color of each index of a palette image, empty for any other image.
        lossy: True if the file is compressed with loss.
        see_through: True if the file has an alpha channel that varies.
        rotated: True if the file has an EXIF orientation, by which ``values`` have been turned.
        pages: Number of pages or frames, of which ``values`` are the first.
        nodata: Value of pixels without data by GDAL's tag of a TIFF. It is not applied.
        top: Largest value that the file can hold, if ``values`` are scaled from its 2 or 4 bits.
    """

    path: Path
    values: Stored
    palette: tuple[Color, ...] = ()
    lossy: bool = False
    see_through: bool = False
    rotated: bool = False
    pages: int = 1
    nodata: int | None = None
    top: int | None = None

    @cached_property
    def equal_channels(self) -> bool:
        """True for colors whose three channels are equal everywhere: ids that are stored three times."""
        first, others = self.values[..., :1], self.values[..., 1:]
        return self.values.ndim == 3 and bool((first == others).all())

    @property
    def numbered(self) -> bool:
        """True unless the file shows its indices in colors. A gray ramp shows them as the numbers they are."""
        return all(color == (index,) * 3 for index, color in enumerate(self.palette)) and len(self.palette) != 1

    @property
    def levels(self) -> tuple[int, ...]:
        """Gray level of each index of a palette of grays in another order than that of the ramp, else empty."""
        gray = all(red == green == blue for red, green, blue in self.palette)
        return tuple(red for red, _, _ in self.palette) if gray and not self.numbered else ()

    def numbers(self, known: Collection[int]) -> Stored:
        """Return the values, as the file stores them rather than scaled to 8 or 16 bits, if these are ``known`` ids.

        If an id that only scaled values reach is known, the scaled values are the ids: programs that shrink PNGs store
        17 as a 1 of 4 bits.
        """
        if self.top is None or self.values.ndim == 3:
            return self.values
        full = int(np.iinfo(self.values.dtype).max)
        stored = np.rint(self.values * (self.top / full)).astype(self.values.dtype)
        within = all(value <= self.top or value == full for value in known)
        return stored if within and count_ids(stored).keys() <= set(known) else self.values

    @cached_property
    def shown(self) -> dict[int, Color]:
        """Color of each index that occurs in a palette image. An index beyond the palette has none."""
        if not self.palette:
            return {}
        return {index: self.palette[index] for index in count_ids(self.values) if index < len(self.palette)}


def read_stored(path: str | Path) -> MaskFile:
    """Read a mask file, turned upright by its EXIF orientation as an image is. Of several pages, the first is read.

    Raises:
        FileNotFoundError: There is no file.
        ImageError: The file is damaged, no image, or has pixels that are neither ids nor RGB colors.
    """
    path = Path(path)
    image = decode_image(path)
    lossy = image.format not in _LOSSLESS and is_lossy(path)
    facts = image_facts(path, bits=16)
    image = upright(image)
    pixels = _eight_bits(path, image)
    mode, see_through = image.mode, False
    palette: tuple[Color, ...] = ()
    if mode in ("LA", "PA", "RGBA"):
        alpha, pixels = pixels[..., -1], pixels[..., :-1]
        see_through = bool((alpha != alpha.flat[0]).any())
        mode = mode[:-1]
        pixels = pixels[..., 0] if mode in ("L", "P") else pixels
    if mode == "P":
        flat = image.getpalette() or []
        palette = tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=False))
    elif mode == "F" or mode.startswith("I"):
        pixels = _whole_ids(pixels, path)
    elif mode == "1":
        pixels = pixels.astype(np.uint8)
    elif mode not in ("L", "RGB"):
        raise ImageError(
            f"mask {path} has pixels of mode {mode}, expected single-channel ids or RGB colors",
            kind="image-format",
            path=path,
            got=mode,
        )
    return MaskFile(
        path=path,
        values=np.ascontiguousarray(pixels),
        palette=palette,
        lossy=lossy,
        see_through=see_through,
        rotated=facts.rotated,
        pages=facts.pages,
        nodata=facts.nodata,
        top=facts.top,
    )


def _eight_bits(path: Path, image: Image.Image) -> npt.NDArray[Any]:
    """Return the pixels of the decoded and upright ``image``. Pillow keeps the upper 8 of 16 bits of several channels.

    If these are all 0, the file stores 8 bits in the lower ones. If both are equal, it shows 8 bits in 16.
    """
    pixels = np.asarray(image)
    if image.mode not in ("LA", "RGB", "RGBA"):
        return pixels
    with open_header(path) as opened:
        tiles: Any = getattr(opened, "tile", ())
        if not any(";16" in str(tile.args) for tile in tiles):
            return pixels
        lower = low_bytes(opened)
    low = None if lower is None else np.asarray(upright(lower))
    if low is None or (pixels[..., :3].any() and not (pixels == low)[..., :3].all()):
        raise ImageError(
            f"mask {path} has {len(image.getbands())} channels of 16 bits, expected ids in one channel, or colors of 8 "
            "bits",
            kind="image-format",
            path=path,
            got=image.mode,
        )
    return pixels if pixels[..., :3].any() else low


def count_ids(values: Stored) -> dict[int, int]:
    """Count the pixels of each id in (H, W)."""
    # Pillow counts bytes three times as fast
    counts = np.array(Image.fromarray(values).histogram()) if values.dtype == np.uint8 else np.bincount(values.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _whole_ids(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint16]:
    """Convert wide or floating-point ids to 16 bits. An id that 16 bits cannot hold is an error."""
    fits = (pixels >= 0) & (pixels <= 65535) & (pixels == np.floor(pixels))  # NaN fits nothing
    if not fits.all():
        raise ImageError(
            f"mask {path} holds {pixels[~fits].flat[0]}, expected ids, whole numbers from 0 to 65535",
            kind="unknown-id",
            path=path,
            got=pixels[~fits].flat[0],
        )
    return pixels.astype(np.uint16)
