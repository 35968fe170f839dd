"""Kinds of data sets, including your own: the NAME in ``--data NAME:REST``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ddsm_zoo.data.arrangements import arrange
from ddsm_zoo.data.cityscapes import CityscapesScores, write_label_ids
from ddsm_zoo.data.importing.detect import import_command, import_hint
from ddsm_zoo.data.layouts import Layout, camvid_layout, cityscapes_layout, folder_layout
from ddsm_zoo.data.mask_names import class_masks_hint
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.data.pairs import SegmentationDataset, Transform
from ddsm_zoo.data.scenes.dataset import Scenes
from ddsm_zoo.data.sequences import sequence_of
from ddsm_zoo.errors import ArgumentTypeError
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils.registry import Registry


class DataSource(Protocol):
    """Opened data set: a `layouts.Layout` of files on disk, or a source that generates its images, as `Scenes` does."""

    @property
    def labels(self) -> LabelSpace:
        """Classes of the data set."""

    def splits(self) -> list[str]:
        """Return the names of the splits that have images."""

    def open(self, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
        """Open one split.

        Args:
            split: Name of the split.
            transform: Transform of each image and mask, None for none.
            seed: Seed of the transform's randomness.

        Raises:
            DatasetError: The split does not exist.
        """


class ExtraScores(Protocol):
    """Scores that only one kind of data set defines, counted image by image."""

    def add(self, index: int, ids: Tensor, target: Tensor) -> None:
        """Count one image of the data set.

        Args:
            index: Index of the image in the data set.
            ids: Predicted class ids (H, W).
            target: Labeled class ids (H, W).
        """

    def compute(self, confusion: Tensor, /) -> dict[str, Any]:
        """Compute the scores.

        In distributed runs each process added its share of the images, and all of them call this. Sum your counts with
        `utils.distributed.all_reduce_sum`.

        Args:
            confusion: Confusion matrix (K, K) of all images, in pixels.

        Returns:
            Scores by name, fractions from 0 to 1 each or tables of them.
        """


class NoExtraScores:
    """Extra scores of a kind that has none."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        pass

    def add(self, index: int, ids: Tensor, target: Tensor) -> None:
        pass

    def compute(self, _confusion: Tensor, /) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class DatasetKind:
    """One kind of data set, written ``NAME:REST`` once it is registered as NAME.

    Attributes:
        open: Function that opens REST, usually a path. ``check-data`` and training check the files of a `Layout`. A
            `DataSource` of another class is not checked. Raises DatasetError.
        metavar: Word for REST in help and errors.
        sequence_of: Function that returns the video of an image from the image's name, or None, for bootstrap intervals
            over sequences.
        extra_scores: Function that builds the counter of this kind's own scores, for one split.
        write_submission: Function ``write_submission(folder, name, ids)`` that writes the class ids (H, W) of an image
            in the format of a benchmark's server, for ``evaluate --submission``. None without a server.
        title: Function that returns the data set's name from REST, for cards and configs. None if NAME itself is the
            data set.
    """

    open: Callable[[str], DataSource]
    metavar: str = "ROOT"
    sequence_of: Callable[[str], str | None] = sequence_of
    extra_scores: Callable[[SegmentationDataset], ExtraScores] = NoExtraScores
    write_submission: Callable[[Path, str, Tensor], None] | None = None
    title: Callable[[str], str] | None = None


DATASET_KINDS: Registry[DatasetKind] = Registry("kind of data set")


def register_dataset(name: str, kind: DatasetKind) -> None:
    """Register ``name:REST`` as a data set for ``--data``, `train`, `evaluate` and all other places that take one.

    Args:
        name: Lower-case letters, digits and underscores.
        kind: Function that opens such data sets, and their other properties.

    Raises:
        ValueError: The name is taken or malformed.
        TypeError: ``kind`` is not a `DatasetKind`.
    """
    if not isinstance(kind, DatasetKind):
        raise ArgumentTypeError(
            f"got {type(kind).__name__} for the data sets {name!r}, expected DatasetKind(open=...)",
            name=name,
            got=type(kind).__name__,
        )
    DATASET_KINDS.register(name, kind)


register_dataset("camvid", DatasetKind(open=camvid_layout))
register_dataset(
    "cityscapes",
    DatasetKind(open=cityscapes_layout, extra_scores=CityscapesScores, write_submission=write_label_ids),
)
register_dataset("folder", DatasetKind(open=folder_layout, title=lambda root: Path(root).resolve().name))
# Scenes are independent: each is a sequence of its own
register_dataset("scenes", DatasetKind(open=Scenes, metavar="N", sequence_of=lambda name: name))


def known_specs(wanted: Callable[[DatasetKind], object] = lambda _kind: True) -> str:
    """List the registered kinds as users write them: ``camvid:ROOT, folder:ROOT or scenes:N``."""
    specs = [f"{name}:{kind.metavar}" for name, kind in DATASET_KINDS.items() if wanted(kind)]
    return " or ".join(filter(None, (", ".join(specs[:-1]), specs[-1])))


def dataset_title(spec: str) -> str:
    """Return the name of a spec's data set, such as ``camvid`` or the folder's own."""
    name, _, rest = spec.partition(":")
    title = find_kind(spec).title
    return name if title is None else title(rest)


def find_kind(spec: str) -> DatasetKind:
    """Find the kind of the data set ``NAME:REST``. Raises DatasetError for a name that is not registered."""
    return _parse(spec)[0]


def open_source(spec: str) -> DataSource:
    """Open the data set ``NAME:REST`` with all its splits. Raises DatasetError if it is unusable."""
    kind, rest = _parse(spec)
    return kind.open(rest)


def open_layout(spec: str) -> Layout:
    """Open the files of the data set ``NAME:REST``. Raises DatasetError if it is unusable or has no files."""
    source = open_source(spec)
    if not isinstance(source, Layout):
        raise DatasetError(
            f"{spec} is generated and has no files: there is nothing to check; expected data on disk", name=spec
        )
    return source


def _parse(spec: str) -> tuple[DatasetKind, str]:
    name, _, rest = spec.partition(":")
    if name in DATASET_KINDS and rest:
        return DATASET_KINDS[name], rest
    if name in DATASET_KINDS:
        raise DatasetError(
            f"data set {spec!r} names nothing after the colon, expected {name}:{DATASET_KINDS[name].metavar}",
            kind="unknown-data",
            name=spec,
        )
    near = difflib.get_close_matches(name[:80], DATASET_KINDS, n=1)
    hint = f"; did you mean {near[0]}:{DATASET_KINDS[near[0]].metavar}?" if near and near[0] != name else ""
    hint += "; a kind of your own must be registered first: import its module (--plugin MODULE)"
    hint = _path_hint(spec) or (import_command(name, rest) if rest else "") or hint
    raise DatasetError(f"data set {spec!r} is unknown, expected {known_specs()}{hint}", kind="unknown-data", name=spec)


def _path_hint(spec: str) -> str:
    """Return the next step for a folder without a kind before it, empty for anything else."""
    if not Path(spec).is_dir():
        return ""
    return import_hint(spec) or class_masks_hint(arrange(Path(spec), None)) or f"; did you mean folder:{spec}?"
