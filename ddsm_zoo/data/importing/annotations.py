"""Annotations of images as every reader returns them: names, colors, and areas or mask files by image."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ddsm_zoo.data import label_file
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.data.problems import SHOWN
from ddsm_zoo.labels import Color

Bitmap = npt.NDArray[np.bool_]
# Function ``paint(height, width)`` that returns the pixels of an area, (H, W)
Paint = Callable[[int, int], Bitmap]

IGNORE = "ignore"  # as the name of the background: its pixels have no class


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Choices of `import_data` where tools and users differ.

    Attributes:
        background: Class of everything that is not annotated, ``"ignore"`` for none. None is ``"background"``, and
            ``"ignore"`` for ADE20K.
        ignore: Names of classes whose pixels are ignored.
        boxes: Draw boxes without a mask as filled rectangles. Otherwise they are left out.
        crowd: Draw COCO's ``iscrowd`` areas as their class. Otherwise they are ignored.
        overlap: Areas on top where several overlap: ``"order"`` the last in the file, ``"area"`` the smallest.
        images: Folder of the images, if they are not beside the annotations.
        link: Make symbolic links to the images instead of copies.
    """

    background: str | None = None
    ignore: tuple[str, ...] = ()
    boxes: bool = False
    crowd: bool = False
    overlap: Literal["order", "area"] = "order"
    images: Path | None = None
    link: bool = False


class Region(NamedTuple):
    """Area of one class.

    Attributes:
        label: Name of the class, None for an ignored area.
        paint: Function that draws it.
        maybe_empty: True if it may well cover no pixel.
        boxed: True for a polygon that is a rectangle.
    """

    label: str | None
    paint: Paint
    maybe_empty: bool = False
    boxed: bool = False


class StoredMask(NamedTuple):
    """Decoded mask file.

    Attributes:
        positions: Index (H, W) into ``labels``, -1 for values that stand for nothing.
        labels: Class names, None for ignored pixels.
        unknown: Values that stand for nothing, for reports.
    """

    positions: npt.NDArray[np.int64]
    labels: Sequence[str | None]
    unknown: Sequence[str] = ()


class EmbeddedImage(NamedTuple):
    """Image inside an annotation file, read when it is written out."""

    suffix: str
    read: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """One image with either its regions, in drawing order, or a mask file.

    Attributes:
        name: Path as the annotations write it, with forward slashes.
        split: Split that the source names, None if it names none.
        file: Image file, or None for a missing image.
        size: Height and width that the annotations were made for, None if not stored.
        regions: Areas, first drawn first.
        stored: Function that reads the mask file. It replaces ``regions``.
    """

    name: str
    split: str | None
    file: Path | EmbeddedImage | None
    size: tuple[int, int] | None = None
    regions: Sequence[Region] = ()
    stored: Callable[[], StoredMask] | None = None


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Contents of an export.

    Attributes:
        names: Class names, in the order of their ids.
        images: The images that the annotations list.
        colors: Colors of classes, as far as the source has some.
        ignored: Labels whose pixels are ignored.
        background: Default of `ImportOptions.background`.
    """

    names: Sequence[str]
    images: Sequence[AnnotatedImage]
    colors: Mapping[str, Color] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    background: str = "background"


class Tally:
    """Counts of equal findings, with the first places of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, what: str, where: str = "", count: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + count
        places = self.examples.setdefault(what, [])
        if where and where not in places and len(places) < SHOWN:
            places.append(where)

    def add_files(self, what: str, files: Iterable[Path]) -> None:
        """Add a finding for each file."""
        for file in files:
            self.add(what, file.name)

    def update(self, other: Tally) -> None:
        for what, count in other.counts.items():
            self.add(what, count=count)
            for place in other.examples[what]:
                self.add(what, place, count=0)

    def to_plain(self) -> list[dict[str, Any]]:
        return [{"what": what, "count": count, "examples": self.examples[what]} for what, count in self.counts.items()]

    def lines(self) -> list[str]:
        """Format each finding in one line: ``points: 3 (a.jpg, b.jpg)``. Facts without a count stand alone."""
        lines = []
        for what, count in self.counts.items():
            places = ", ".join(self.examples[what])
            lines.append(what + (f": {count}" if count else "") + (f" ({places})" if places else ""))
        return lines


class Findings:
    """Findings of an import: annotations and images that were left out, and assumptions."""

    def __init__(self) -> None:
        self.left_out = Tally()
        self.notes = Tally()

    def update(self, other: Findings) -> None:
        self.left_out.update(other.left_out)
        self.notes.update(other.notes)


@contextlib.contextmanager
def readable(file: Path, format: str) -> Iterator[None]:
    """Raise DatasetError with the file's name for contents that do not have the format's fields and types."""
    try:
        yield
    except DatasetError:
        raise
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        SyntaxError,
        RecursionError,
    ) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise DatasetError(f"{file} cannot be read as {format} ({reason})", kind="import", path=file) from error


def read_json(file: Path) -> Any:
    """Parse JSON in UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Raises DatasetError."""
    with readable(file, "JSON"):
        return json.loads(file.read_bytes())


def read_text(file: Path) -> str:
    """Read text as `label_file.read_text` does. Raises DatasetError with the file's name."""
    with readable(file, "text"):
        return label_file.read_text(file)
