"""Import of an export as a data set ``folder:DEST``."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ddsm_zoo.data.images import SUFFIXES, ImageError
from ddsm_zoo.data.importing.annotations import (
    IGNORE,
    AnnotatedImage,
    Annotations,
    EmbeddedImage,
    Findings,
    ImportOptions,
)
from ddsm_zoo.data.importing.class_masks import read_class_masks
from ddsm_zoo.data.importing.coco import read_coco
from ddsm_zoo.data.importing.cvat import read_cvat
from ddsm_zoo.data.importing.detect import detect, import_hint
from ddsm_zoo.data.importing.draw import ClassIds, ClassTable, class_table, draw
from ddsm_zoo.data.importing.files import existing_source
from ddsm_zoo.data.importing.labelme import read_labelme
from ddsm_zoo.data.importing.stored_masks import read_ade20k, read_roboflow, read_voc
from ddsm_zoo.data.importing.yolo import read_yolo
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.files import atomic_folder, write_json
from ddsm_zoo.utils.prefetch import prefetch

logger = logging.getLogger(__name__)

READERS: Mapping[str, Callable[[Path, ImportOptions, Findings], Annotations]] = {
    "coco": read_coco,
    "labelme": read_labelme,
    "voc": read_voc,
    "cvat": read_cvat,
    "yolo": read_yolo,
    "roboflow": read_roboflow,
    "ade20k": read_ade20k,
    "class-masks": read_class_masks,
}

_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Result of `import_data`.

    ``pixels`` and ``occurs`` have, by class id, the number of pixels and of images with the class; ``empty`` counts the
    images of each split without annotations, which are all background.
    """

    format: str
    source: str
    data: str
    labels: LabelSpace
    splits: Mapping[str, int]
    empty: Mapping[str, int]
    pixels: Sequence[int]
    occurs: Sequence[int]
    ignored: int
    findings: Findings

    def to_plain(self) -> dict[str, Any]:
        """Convert the report to JSON-ready data."""
        rows = zip(self.labels.names, self.pixels, self.occurs, strict=True)
        return {
            "format": self.format,
            "source": self.source,
            "data": self.data,
            "splits": {
                split: {"images": count, "without_annotations": self.empty.get(split, 0)}
                for split, count in self.splits.items()
            },
            "classes": {name: {"pixels": pixels, "images": images} for name, pixels, images in rows},
            "ignored_pixels": self.ignored,
            "left_out": self.findings.left_out.to_plain(),
            "notes": self.findings.notes.to_plain(),
        }


def import_data(
    format: str,
    source: str | Path,
    dest: str | Path,
    options: ImportOptions | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Turn the export of an annotation tool into ``folder:DEST``: images/SPLIT, masks/SPLIT and labels.json.

    Polygons need ``pip install "ddsm-zoo[formats]"``.

    Args:
        format: "coco", "labelme", "voc", "cvat", "yolo", "roboflow", "ade20k" or "class-masks".
        source: Folder of the export, for some formats also a file in it.
        dest: Folder to make. It appears when all of it is written.
        options: Choices where tools and users differ.
        progress: Function called as ``progress(done, total)`` after each image.

    Returns:
        Classes, splits, and what was left out or assumed.

    Raises:
        DatasetError: The source has no such annotations, or nothing in them has an area.
        OutputError: DEST exists or cannot be written.
    """
    if format not in READERS:
        raise DatasetError(f"the format {format!r} is unknown, expected one of {', '.join(READERS)}", kind="import")
    options = options or ImportOptions()
    source, dest = existing_source(Path(source)), Path(dest).expanduser()
    findings = Findings()
    with atomic_folder(dest) as folder:
        annotations = _read(format, source, options, findings)
        _note_boxes(annotations, findings)
        table = class_table(annotations, options, findings)
        jobs = list(_jobs(annotations.images, folder, findings))
        totals = _Totals(len(table.labels))
        write = _Writer(table, options)
        for done, (job, counts, found) in enumerate(prefetch(write, jobs, _THREADS, 2 * _THREADS), 1):
            findings.update(found)
            if counts is not None:
                totals.add(job, counts)
            if progress:
                progress(done, len(jobs))
        _require_areas(source, format, annotations, totals, table.rest, findings)
        if options.background is None and annotations.background == IGNORE:
            findings.notes.add(
                "pixels of no object are ignored, as in the benchmark (--background NAME: a class)", count=0
            )
        labels = table.labels
        fields = {"names": labels.names, "palette": labels.palette, "ignore_index": labels.ignore_index}
        write_json(folder / "labels.json", fields)
    return ImportReport(
        format=format,
        source=str(source),
        data=f"folder:{dest}",
        labels=table.labels,
        splits=totals.splits,
        empty=totals.empty,
        pixels=totals.pixels.tolist(),
        occurs=totals.occurs.tolist(),
        ignored=totals.ignored,
        findings=findings,
    )


def _read(format: str, source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    try:
        return READERS[format](source, options, findings)
    except DatasetError as error:
        found = detect(source)
        if found is None or found[0] == format:
            raise
        raise DatasetError(f"{error}{import_hint(source)}", kind="import") from error


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One image with its places in the new data set. ``shown`` is False for an image without annotations."""

    image: AnnotatedImage
    split: str
    target: Path
    mask: Path
    shown: bool


class _Totals:
    def __init__(self, classes: int) -> None:
        self.splits: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()
        self.pixels = np.zeros(classes, np.int64)
        self.occurs = np.zeros(classes, np.int64)
        self.ignored = 0

    def add(self, job: _Job, counts: ClassIds) -> None:
        self.splits[job.split] += 1
        if not job.shown:
            self.empty[job.split] += 1
        self.pixels += counts[:-1]
        self.occurs += counts[:-1] > 0
        self.ignored += int(counts[-1])


class _Writer:
    """Write the image and the mask of a job. Called in several threads."""

    def __init__(self, table: ClassTable, options: ImportOptions) -> None:
        self.table, self.options = table, options

    def __call__(self, job: _Job) -> tuple[_Job, ClassIds | None, Findings]:
        """Return the pixels of each class and, last, the ignored ones; None for an image that was left out."""
        findings = Findings()
        content = job.image.file
        try:
            if isinstance(content, EmbeddedImage):
                job.target.write_bytes(content.read())
            file = content if isinstance(content, Path) else job.target
            mask = draw(job.image, file, self.table, self.options, findings)
        except (ImageError, FileNotFoundError) as error:
            findings.left_out.add("images or masks that cannot be read", f"{job.image.name} ({error})")
            mask = None
        if mask is None:
            job.target.unlink(missing_ok=True)
            return job, None, findings
        if isinstance(content, Path):
            if self.options.link:
                job.target.symlink_to(content.resolve())
            else:
                shutil.copyfile(content, job.target)
        classes, ignore = len(self.table.labels), self.table.labels.ignore_index
        Image.fromarray(mask.astype(np.uint8 if ignore < 256 else np.uint16)).save(job.mask)
        counts = np.bincount(np.where(mask == ignore, classes, mask).ravel(), minlength=classes + 1)
        return job, counts, findings


def _jobs(images: Sequence[AnnotatedImage], folder: Path, findings: Findings) -> Iterator[_Job]:
    """Choose the split and the new name of each image, and make the folders. Missing images are findings."""
    present = [image for image in images if _is_usable(image, findings)]
    if present and not any(image.split for image in present):
        findings.notes.add(
            "the source names no splits: all images are in train, and training holds out a part (`holdout`)", count=0
        )
    elif unsorted := [image for image in present if not image.split]:
        for image in unsorted:
            findings.notes.add("images in no split, which are in train", image.name)
    elif not any(image.split == "train" for image in present):
        findings.notes.add("no image is in train: the names of folders and files say other splits", count=0)
    stems = _unique_stems(present, findings)
    for image in present:
        split = image.split or "train"
        stem = stems[id(image)]
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        yield _Job(
            image=image,
            split=split,
            target=folder / "images" / split / f"{stem}{_suffix(image)}",
            mask=folder / "masks" / split / f"{stem}.png",
            shown=bool(image.regions) or image.stored is not None,
        )


def _is_usable(image: AnnotatedImage, findings: Findings) -> bool:
    if image.file is None:
        findings.left_out.add("images that are missing", image.name)
        return False
    if _suffix(image) not in SUFFIXES:
        findings.left_out.add(f"images of other formats than {' '.join(sorted(SUFFIXES))}", image.name)
        return False
    return True


def _suffix(image: AnnotatedImage) -> str:
    if isinstance(image.file, EmbeddedImage):
        return image.file.suffix
    return image.file.suffix.lower() if image.file else ""


def _unique_stems(images: Sequence[AnnotatedImage], findings: Findings) -> dict[int, str]:
    """Name each image by its stem; where several of a split share one, by as many folders as tell them apart."""
    stems: dict[int, str] = {}
    taken: set[tuple[str | None, str]] = set()
    groups: dict[tuple[str | None, str], list[AnnotatedImage]] = {}
    for image in images:
        groups.setdefault((image.split or "train", PurePosixPath(image.name).stem.casefold()), []).append(image)
    for (split, _), group in sorted(groups.items(), key=lambda item: len(item[1])):
        for image in group:
            path = PurePosixPath(image.name)
            parts = [part for part in path.parent.parts if part not in ("/", "..", ".")]
            names = ["_".join((*parts[len(parts) - depth :], path.stem)) for depth in range(len(parts) + 1)]
            names = names[:1] if len(group) == 1 else names[1:]
            names += [f"{name}_{path.suffix[1:]}" for name in names[-1:] or [path.stem]]
            names += [f"{path.stem}_{number}" for number in range(2, len(images) + 2)]
            chosen = next(name for name in names if (split, name.casefold()) not in taken)
            if chosen != path.stem:
                findings.notes.add("images renamed, as others have the same name", f"{image.name} to {chosen}")
            taken.add((split, chosen.casefold()))
            stems[id(image)] = chosen
    return stems


def _note_boxes(annotations: Annotations, findings: Findings) -> None:
    """Say that all areas are rectangles, as converters store the boxes of detection data sets."""
    regions = [region for image in annotations.images for region in image.regions]
    if regions and all(region.boxed for region in regions):
        what = "all areas are rectangles: if they are boxes around objects, so are the masks"
        findings.notes.add(what, count=len(regions))


def _require_areas(
    source: Path, format: str, annotations: Annotations, totals: _Totals, rest: int, findings: Findings
) -> None:
    """Raise DatasetError if no image could be used, or none shows anything but the class ``rest``."""
    left_out = "; ".join(findings.left_out.lines()) or "it lists none"
    if not totals.splits:
        raise DatasetError(
            f"{source} has no usable image for {format} among the {len(annotations.images)} it lists: {left_out}",
            kind="import",
            path=source,
        )
    shown = totals.pixels.sum() - (totals.pixels[rest] - totals.ignored if rest < len(totals.pixels) else 0)
    nothing = sum(totals.empty.values()) == sum(totals.splits.values())
    if nothing or (findings.left_out.counts and not shown):
        raise DatasetError(f"{source} has no annotation with an area: {left_out}", kind="import", path=source)
