"""Reading of image and mask files. Every photo format becomes 8-bit RGB, or an error of one line."""

from __future__ import annotations

import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ddsm_zoo.data.depth import DARK, Values, low_bytes, require_bits, scale_to_8_bit, stated_bits
from ddsm_zoo.errors import MissingFileError, UserError, facts

# Pillow hands EPS and others to an interpreter; these formats are only decoded.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

SUFFIXES = frozenset(
    {
        ".apng", ".bmp", ".dib", ".gif", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".pjp",
        ".pjpeg", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip

# Suffixes of images that are not read. Files of these are counted where folders are searched.
UNREAD_SUFFIXES = frozenset(
    {
        ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".ico", ".j2k",
        ".jp2", ".jpx", ".jxl", ".nef", ".npy", ".orf", ".pdf", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga", ".xcf",
    }
)  # fmt: skip

# Exceptions that Pillow's decoders raise on damaged bytes.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

BLACKEST = 12  # luma of 255 that black still has after JPEG or video compression

# the last bytes of a PNG, a chunk's name and checksum, and of a JPEG
_ENDS = (b"IEND\xaeB`\x82", b"\xff\xd9")


class ImageError(UserError, ValueError):
    """Unreadable image file. The message names the file and the problem."""

    kind = "image"


def read_image(path: str | Path, max_pixels: int | None = None, bits: int | None = None) -> Image.Image:
    """Read the image in ``path`` as 8-bit RGB, rotated upright by its EXIF orientation.

    Gray, palette, CMYK and 16-bit images are converted. Transparency is dropped. An animation or a TIFF of several
    pages gives its first one. Values of more than 8 bits are scaled by the ``bits`` in use. Unless given, these are the
    bits that the file states (PNG's sBIT, TIFF's BitsPerSample and MaxSampleValue), and 16 if it states none.

    Raises FileNotFoundError, and ImageError for a file that is empty, truncated, too large to be decoded safely or no
    image. An image is too large if it has more than ``max_pixels`` pixels, or more than Pillow's default limit of 179
    million. A value that ``bits`` bits cannot hold is an ImageError too.
    """
    path = Path(path)
    require_bits(bits)
    image = upright(decode_image(path, max_pixels))
    values = _deep_values(path, image, always=bits is not None)
    if values is not None:
        try:
            image = Image.fromarray(scale_to_8_bit(values, bits or stated_bits(path, values) or 16))
        except ValueError as error:
            raise ImageError(f"{path} {error}", kind="image-bits", path=path, **facts(error)) from error
    return to_rgb(image, str(path))


def largest_of_16_bits(path: str | Path) -> int | None:
    """Return the largest value of a 16-bit image whose bits in use are unknown. None for any other image.

    An RGB image that is bright enough for 16 bits is also None. Raises as `read_image` does.
    """
    path = Path(path)
    values = _deep_values(path, decode_image(path))
    return None if values is None or stated_bits(path, values) else int(values.max())


def image_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of `read_image`'s result without decoding a file that looks complete.

    A PNG or JPEG looks complete if it has a header and the right end. Damage in between shows only on reading. Raises
    as `read_image` does.
    """
    path = Path(path)
    _refuse_special(path)
    width, height = _looks_whole(path) or read_image(path).size
    return height, width


def is_lossy(path: str | Path) -> bool:
    """Return True for a JPEG, a lossy WebP or a TIFF with either inside: the pixels are not those that were stored.

    The name of the file does not matter.
    """
    _refuse_special(Path(path))
    with Path(path).open("rb") as file:
        start = file.read(12)
        if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
            return _holds_lossy_frame(file)
    if start.startswith((b"II", b"MM")):
        return _details(path).get("compression") in ("jpeg", "tiff_jpeg", "webp")
    return start.startswith(b"\xff\xd8\xff")


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB as `read_image` does. Raises ImageError, calling it ``name``."""
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(scale_to_8_bit(_as_16_bit(image, name), 16))
    try:
        with _quiet():  # Pillow warns that it would rather keep some transparency
            return image.convert("RGB")
    except DECODER_ERRORS as error:
        raise ImageError(
            f"cannot convert {name} from {image.mode} to RGB: {_first_line(error)}", kind="damaged-image", name=name
        ) from error


def upright(image: Image.Image) -> Image.Image:
    """Rotate a decoded image upright by its EXIF orientation, in place."""
    # Unreadable metadata cannot rotate. In place, since Pillow rotates the pixels before it rewrites the metadata,
    # which fails for a text tag that holds a number. In place, it also does not copy an upright image.
    with suppress(*DECODER_ERRORS, AttributeError), _quiet():
        ImageOps.exif_transpose(image, in_place=True)
    return image


def picture_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of an RGB image without the rows and columns of black at its border.

    None if there are none. Black that goes deeper than a sixth of the image is taken for a part of the picture.
    """
    bright = image.convert("L").point([0] * (BLACKEST + 1) + [255] * (255 - BLACKEST))
    left, top, right, bottom = bright.getbbox() or (0, 0, image.width, image.height)
    left, top = (left if left <= image.width / 6 else 0), (top if top <= image.height / 6 else 0)
    right = right if image.width - right <= image.width / 6 else image.width
    bottom = bottom if image.height - bottom <= image.height / 6 else image.height
    box = (left, top, right, bottom)
    return None if box == (0, 0, image.width, image.height) else box


def decode_image(path: Path, max_pixels: int | None = None) -> Image.Image:
    """Decode the first frame of the image in ``path`` completely, in its stored mode. Raises as `read_image` does."""
    with open_header(path, max_pixels) as image:
        if isinstance(image, TiffImageFile):
            image.filename = ""  # else Pillow maps raw pixels at the upright size, which scrambles those on their side
        image.load()
        return image


@contextmanager
def open_header(path: Path, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image without decoding it. Errors in the block count as the file's: raises as `read_image` does."""
    Image.init()  # Pillow knows TIFF and WebP only after this call
    _refuse_special(path)
    try:
        with _quiet():  # damaged metadata do not change the pixels
            with _limit(max_pixels):
                image = Image.open(path, formats=FORMATS)
            with image:
                yield image
    except FileNotFoundError as error:
        problem = f"{path} is a link to a file that does not exist" if path.is_symlink() else f"no image file at {path}"
        raise MissingFileError(f"{problem}, expected the path of an image", kind="missing-file", path=path) from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder, expected an image file", kind="image-format", path=path) from error
    except PermissionError as error:
        raise ImageError(f"{path} cannot be read: permission denied", kind="damaged-image", path=path) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} {_other_content(path)}, expected one of {', '.join(FORMATS)}", kind="image-format", path=path
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} is too large to be decoded safely: {_first_line(error).rstrip('.')}; use a smaller "
            "image or tiles (--tile auto)",
            kind="image-too-large",
            path=path,
        ) from error
    except DECODER_ERRORS as error:
        raise ImageError(
            f"{path} is truncated or damaged: {_first_line(error)}", kind="damaged-image", path=path
        ) from error


def _refuse_special(path: Path) -> None:
    """Raise ImageError for a named pipe, a socket or a device, whose reader would wait forever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ImageError(
            f"{path} is a named pipe, a socket or a device, expected an image file", kind="image-format", path=path
        )


# What files hold that are called like images, by their first bytes
_OTHER_CONTENTS = (
    (rb"version https://git-lfs", "is a pointer of Git LFS instead of the file (git lfs pull gets it)"),
    (rb"\s*<(!doctype html|html)", "is a web page instead of the file that was to be downloaded"),
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "is a HEIC image"),
    (rb".{4}ftypavi", "is an AVIF image"),
    (rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)", "is a JPEG 2000 image"),
    (rb"(II[*+]\0|MM\0[*+])", "is a TIFF whose bands or bits Pillow does not read (it reads 1, 3 or 4 bands)"),
    (rb"\x93NUMPY", "is a numpy array"),
    (rb".{128}DICM", "is a DICOM image"),
    (rb"%PDF", "is a PDF"),
    (rb"PK\x03\x04", "is a ZIP archive"),
    (rb"\Z", "is empty"),
)


def _other_content(path: Path) -> str:
    """Describe a file that is no image which can be read."""
    with path.open("rb") as file:
        start = file.read(256)
    kinds = (text for pattern, text in _OTHER_CONTENTS if re.match(pattern, start, re.DOTALL | re.IGNORECASE))
    return next(kinds, "is no image")


class _Quiet:
    """Suppress warnings in any number of threads.

    Filters are global to the process, so the last thread to leave restores them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.filters = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if not self.inside:
                    self.filters.close()


_quiet = _Quiet()
_limiting = threading.Lock()


@contextmanager
def _limit(max_pixels: int | None) -> Iterator[None]:
    """Let Pillow open images of up to ``max_pixels``. Its limit is global too, and it refuses only twice as many."""
    if max_pixels is None:
        yield
        return
    with _limiting:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels // 2
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _details(path: str | Path) -> dict[Any, Any]:
    """Return the header fields of an image, and the ``palette`` if it has one. Empty for an unreadable file."""
    Image.init()
    try:
        with _quiet(), Image.open(path, formats=FORMATS) as image:
            return image.info | ({"palette": image.getpalette() or ()} if image.mode == "P" else {})
    except DECODER_ERRORS:
        return {}


def _holds_lossy_frame(file: IO[bytes]) -> bool:
    """Return True if the first frame of a WebP is lossy. Chunks of metadata and alpha may come before it."""
    while len(header := file.read(8)) == 8:
        kind, length = header[:4], int.from_bytes(header[4:], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        # an animation's frame has 16 bytes of its own, then chunks; the length of any other chunk is padded to even
        file.seek(16 if kind == b"ANMF" else length + length % 2, os.SEEK_CUR)
    return False


def _looks_whole(path: Path) -> tuple[int, int] | None:
    """Return width and height of a PNG or JPEG that has its last bytes and no rotation, None for any other file."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("error")  # a warning means doubt: the caller then decodes the file
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                turned = "exif" in image.info
                size = image.size
            file.seek(-len(_ENDS[0]), os.SEEK_END)
            ends = file.read().endswith(_ENDS)
    except (*DECODER_ERRORS, Warning):
        return None
    return size if ends and not turned else None


def _as_16_bit(image: Image.Image, name: str) -> npt.NDArray[np.uint16]:
    """Convert a single-channel image with more than 8 bits (H, W). More than 16 bits is an error."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name} has {'floating-point' if image.mode == 'F' else '32-bit'} pixels, expected 8 or 16 bits a channel",
            kind="image-format",
        )
    return values.astype(np.uint16)


def _deep_values(path: Path, image: Image.Image, *, always: bool = False) -> Values | None:
    """Return the values (H, W) or (H, W, 3) of more than 8 bits of the decoded and upright ``image``, None for 8 bits.

    Of RGB images, Pillow gives the upper 8 bits, which are enough unless the picture is dark or ``always`` is True.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _as_16_bit(image, str(path))
    if image.mode not in ("RGB", "RGBA"):
        return None
    brightest: Any = image.getextrema()
    if not always and max(top for _, top in brightest[:3]) >= DARK >> 8:
        return None
    with open_header(path, 2 * image.width * image.height) as opened:
        lower = low_bytes(opened)
    if lower is None:
        return None
    high, low = (np.asarray(part)[..., :3].astype(np.uint16) for part in (image, upright(lower)))
    values: Values = (high << 8 | low).astype(np.uint16)
    return values


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
