"""Label doctor: find the problems of a data set before a model is trained on it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddsm_zoo.data.check.images import ImageCheck
from ddsm_zoo.data.check.masks import Counts, MaskCheck
from ddsm_zoo.data.check.palettes import PaletteCheck
from ddsm_zoo.data.images import ImageError, image_size, read_image
from ddsm_zoo.data.kinds import open_layout, open_source
from ddsm_zoo.data.layouts import LABELED_SPLITS, Layout, SplitFiles, split_hint
from ddsm_zoo.data.mask_files import read_stored
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.data.problems import SEVERITIES, Problem
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.files import sha256_of

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Class histogram of a split.

    ``pixels`` and ``occurs`` have, by class id, the number of pixels and of masks with the class. ``ignored`` is the
    number of pixels without a class. ``counts`` (masks, K) has the pixels of each class in each mask, in the order of
    the names.
    """

    images: int
    pixels: tuple[int, ...]
    occurs: tuple[int, ...]
    ignored: int
    counts: Counts = field(compare=False, repr=False)

    def shares(self) -> list[float]:
        """Return the fraction of all labeled pixels that each class has, 0 if no pixel is labeled."""
        return [count / max(1, sum(self.pixels)) for count in self.pixels]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Findings of `check_data`: the histogram of each split, and the problems, errors first.

    ``reading`` says in one line what the stored values of the masks stand for.
    """

    data: str
    labels: LabelSpace
    splits: Mapping[str, SplitSummary]
    problems: tuple[Problem, ...]
    reading: str

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "warning"]

    def verdict(self) -> str:
        """Summarize the numbers of errors and warnings in one line."""
        counts = ((len(self.errors), "error"), (len(self.warnings), "warning"))
        found = [f"{count} {word}{'s' * (count > 1)}" for count, word in counts if count]
        return f"{self.data} has {' and '.join(found) or 'no problems'}"

    def to_plain(self) -> dict[str, Any]:
        """Convert the report to JSON-ready data."""
        splits = {}
        for name, summary in self.splits.items():
            rows = zip(self.labels.in_masks.names, summary.pixels, summary.shares(), summary.occurs, strict=True)
            classes = {label: {"pixels": pixels, "share": share, "images": n} for label, pixels, share, n in rows}
            splits[name] = {"images": summary.images, "ignored_pixels": summary.ignored, "classes": classes}
        problems = [{**dataclasses.asdict(problem), "text": str(problem)} for problem in self.problems]
        counts = {"errors": len(self.errors), "warnings": len(self.warnings)}
        return {"data": self.data, "masks": self.reading, **counts, "problems": problems, "splits": splits}


def check_data(
    spec: str, splits: Sequence[str] | None = None, *, quick: bool = False, progress: Progress | None = None
) -> Report:
    """Find the problems of a data set on disk: ``camvid:ROOT``, ``folder:ROOT``, ...

    Every file is decoded and every image compared with those of the other splits.

    Args:
        spec: Data set, as ``NAME:ROOT``.
        splits: Names of the splits to check, by default all.
        quick: Decode the masks only. Of an image, read the header and the end. Compare files of equal length.
        progress: Function called as ``progress(done, total)`` after each image.

    Returns:
        Histograms and problems.

    Raises:
        DatasetError: The data set or a split does not exist, or the data are generated and have no files.
    """
    layout = open_layout(spec)
    names = layout.splits() if splits is None else list(splits)
    if not names:
        layout.files(LABELED_SPLITS[0])  # raises the error of a data set without images
    files = {split: layout.files(split) for split in names}
    total = sum(len(each.images) for each in files.values())
    palettes = PaletteCheck()
    checks = {split: _SplitCheck(layout, split, each, palettes, quick=quick) for split, each in files.items()}
    done = 0
    for check in checks.values():
        for _ in check.run():
            done += 1
            if progress:
                progress(done, total)
    problems = [problem for check in checks.values() for problem in check.problems()]
    problems += _leaks(layout, checks, quick=quick)
    if splits is None:
        problems += _missing_splits(names)
    return Report(
        data=spec,
        labels=layout.labels,
        splits={split: check.summary() for split, check in checks.items()},
        problems=tuple(sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))),
        reading=next(iter(files.values())).decode.describe(layout.labels),
    )


def require_sound(spec: str, splits: Sequence[str], progress: Progress | None = None) -> Report | None:
    """Run a quick check and refuse data that a model cannot learn from or be scored on. Warnings and notes are logged.

    Generated data, such as rendered scenes, have no files and no report. Raises DatasetError with the first error in
    the words of `check_data`.
    """
    if not isinstance(open_source(spec), Layout):
        return None
    report = check_data(spec, splits, quick=True, progress=progress)
    if errors := report.errors:
        others = f" ({len(errors) - 1} more: ddsm-zoo check-data {spec})" if len(errors) > 1 else ""
        raise DatasetError(f"{spec} cannot be used: {errors[0]}{others}", kind=errors[0].kind, name=spec)
    for problem in report.problems:
        _logger.warning("%s: %s", spec, problem)
    return report


class _SplitCheck:
    """Check of the files of one split, one after another."""

    def __init__(self, layout: Layout, split: str, files: SplitFiles, palettes: PaletteCheck, *, quick: bool) -> None:
        self.layout, self.split, self.files, self.quick = layout, split, files, quick
        self.masks = MaskCheck(layout, split, files.decode, palettes)
        self.images = ImageCheck(split, layout.bits, label_file=layout.label_file)
        self.prints: dict[str, list[Path]] = defaultdict(list)  # images by the hash of their pixels
        self._damaged_images: list[str] = []
        self._damaged_masks: list[str] = []
        self._misfits: list[str] = []

    def run(self) -> Iterator[None]:
        for name, image in sorted(self.files.images.items()):
            size = self._read_image(image, quick=self.quick)
            self.images.add(self._name(image), image)
            mask = self.files.masks.get(name)
            if mask is not None:
                self._read_mask(mask, image, size)
            yield

    def problems(self) -> list[Problem]:
        found = self.layout.problems(self.split, self.files)
        images, masks = len(self.files.images), len(self.files.masks.keys() & self.files.images.keys())
        found += [
            self._problem("damaged-image", "damage in", "images", self._damaged_images, images),
            self._problem("damaged-mask", "damage in", "masks", self._damaged_masks, masks),
            self._problem("size-mismatch", "another size than the image's in", "masks", self._misfits, masks),
        ]
        return [problem for problem in (*found, *self.images.problems(), *self.masks.problems()) if problem.count]

    def summary(self) -> SplitSummary:
        counts = self.masks.counts
        return SplitSummary(
            images=len(self.files.images),
            pixels=tuple(counts.sum(0, dtype=np.int64).tolist()),
            occurs=tuple((counts > 0).sum(0).tolist()),
            ignored=self.masks.ignored,
            counts=counts,
        )

    def _read_image(self, path: Path, *, quick: bool) -> tuple[int, int] | None:
        """Return height and width, None for an unreadable image."""
        try:
            if quick:
                return image_size(path)
            image = read_image(path, bits=self.layout.bits)
        except (ImageError, OSError) as error:
            self._damaged_images.append(self._describe(path, error))
            return None
        self.prints[_fingerprint(image)].append(path)
        return image.height, image.width

    def _read_mask(self, path: Path, image: Path, size: tuple[int, int] | None) -> None:
        try:
            stored = read_stored(path)
            self.masks.add(self._name(path), stored)
        except (ImageError, OSError) as error:
            self._damaged_masks.append(self._describe(path, error))
            return
        if self.quick and size is not None and stored.values.shape[:2] != size:
            size = self._read_image(image, quick=False)  # metadata that rotates it may follow the pixels
        if size is not None and stored.values.shape[:2] != size:
            actual = f"{stored.values.shape[1]} x {stored.values.shape[0]}, its image {size[1]} x {size[0]}"
            if self.images.rotated(self._name(image)):
                actual += ", which EXIF rotates"
            self._misfits.append(f"{self._name(path)} ({actual})")

    def _name(self, path: Path) -> str:
        return self.layout.below_root(path)[0]

    def _describe(self, path: Path, error: Exception) -> str:
        reason = " ".join(str(error).replace(str(path), "").split())
        return f"{self._name(path)} ({reason})"

    def _problem(self, kind: str, what: str, noun: str, files: list[str], total: int) -> Problem:
        return Problem.of(files, kind=kind, split=self.split, what=what, noun=noun, total=total)


def _leaks(layout: Layout, checks: Mapping[str, _SplitCheck], *, quick: bool) -> list[Problem]:
    """Find images that several splits share. They make the later split's score meaningless for new images."""
    prints = _prints_of_files(checks) if quick else {split: check.prints for split, check in checks.items()}
    problems: list[Problem] = []
    splits = list(checks)
    for index, later in enumerate(splits):
        for earlier in splits[:index]:
            common = [
                f"{layout.below_root(image)[0]} = {layout.below_root(prints[earlier][key][0])[0]}"
                for key, images in prints[later].items()
                if key in prints[earlier]
                for image in images
            ]
            if common:
                problems.append(
                    Problem.of(
                        common,
                        kind="leak",
                        # trainval has the images of train and of val, as its name says
                        severity="warning" if earlier in later else "error",
                        split=later,
                        what=f"the same picture as in {earlier} for",
                        noun="images",
                        advice="whose score says nothing about new pictures",
                        total=len(checks[later].files.images),
                    )
                )
    return problems


def _prints_of_files(checks: Mapping[str, _SplitCheck]) -> dict[str, dict[str, list[Path]]]:
    """Hash image files, but only those that have the length of a file in another split."""
    lengths = {
        split: {path: path.stat().st_size for path in check.files.images.values() if path.is_file()}
        for split, check in checks.items()
    }
    shared = Counter(length for files in lengths.values() for length in set(files.values()))
    prints: dict[str, dict[str, list[Path]]] = {}
    for split, files in lengths.items():
        prints[split] = defaultdict(list)
        for path, length in files.items():
            if shared[length] > 1:
                prints[split][sha256_of(path)].append(path)
    return prints


def _missing_splits(present: Iterable[str]) -> list[Problem]:
    names = list(present)
    instead = {"val": "training holds out a part of train instead"}
    return [
        Problem(
            kind="missing-split",
            severity="warning",
            split=split,
            what="no images",
            advice=f"{instead.get(split, 'which training needs')}; this has {', '.join(names)}"
            + split_hint(split, names),
        )
        for split in LABELED_SPLITS
        if split not in names
    ]


def _fingerprint(image: Image.Image) -> str:
    return hashlib.sha256(b"%d x %d " % image.size + image.tobytes()).hexdigest()
