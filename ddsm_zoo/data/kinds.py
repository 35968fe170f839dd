"""Kinds of data sets: the NAME in ``--data NAME:REST``, ones of your own among them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ddsm_zoo.data.cityscapes import CityscapesScores, write_label_ids
from ddsm_zoo.data.layouts import Layout, camvid_layout, cityscapes_layout, folder_layout
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.data.pairs import SegmentationDataset, Transform
from ddsm_zoo.data.scenes.dataset import Scenes
from ddsm_zoo.data.sequences import sequence_of
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils.registry import Registry


class DataSource(Protocol):
    """An opened data set: a `layouts.Layout` of files on disk, or one that makes its images, as `Scenes` does."""

    @property
    def labels(self) -> LabelSpace:
        """The classes."""

    def splits(self) -> list[str]:
        """Names of the splits that have images."""

    def open(self, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
        """Open one split; ``seed`` is that of the transform. Raises DatasetError for a split that is not there."""


class ExtraScores(Protocol):
    """Scores that only one kind of data set defines, counted image by image."""

    def add(self, index: int, ids: Tensor, target: Tensor) -> None:
        """Count one image of the data set: predicted ``ids`` (H, W) and labeled ``target`` (H, W), class ids both."""

    def compute(self, confusion: Tensor) -> dict[str, Any]:
        """Scores by name, fractions of 1 each or tables of them, from the ``confusion`` (K, K) of all images in pixels.

        In distributed runs each process added its share of the images, and all of them call this: sum what was counted
        with `utils.distributed.all_reduce_sum`.
        """


class NoExtraScores:
    """The extra scores of a kind that has none."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        pass

    def add(self, index: int, ids: Tensor, target: Tensor) -> None:
        pass

    def compute(self, confusion: Tensor) -> dict[str, Any]:  # noqa: ARG002 - as `ExtraScores` has it
        return {}


@dataclass(frozen=True, kw_only=True)
class DatasetKind:
    """One kind of data set, written ``NAME:REST`` once it is registered as NAME.

    Attributes:
        open: opens REST, a path as a rule. The files of a `Layout` are checked, by ``check-data`` and before training;
            a `DataSource` of another class is taken as it is. Raises DatasetError.
        metavar: the word for REST in help and errors.
        sequence_of: the video of an image by the image's name, or None, for bootstrap intervals over sequences.
        extra_scores: builds the counter of the scores that this kind alone has, for one split.
        write_submission: ``write_submission(folder, name, ids)`` writes the class ids (H, W) of an image as a
            benchmark's server takes them, for ``evaluate --submission``. None where there is no server.
        title: the data set's name from REST, for cards and configs. None where NAME itself is the data set.
    """

    open: Callable[[str], DataSource]
    metavar: str = "ROOT"
    sequence_of: Callable[[str], str | None] = sequence_of
    extra_scores: Callable[[SegmentationDataset], ExtraScores] = NoExtraScores
    write_submission: Callable[[Path, str, Tensor], None] | None = None
    title: Callable[[str], str] | None = None


DATASET_KINDS: Registry[DatasetKind] = Registry("kind of data set")


def register_dataset(name: str, kind: DatasetKind) -> None:
    """Make ``name:REST`` a data set of this kind wherever a data set is named: ``--data``, `train`, `evaluate`, ...

    Args:
        name: lower-case letters, digits and underscores.
        kind: the way such data sets are opened, and what else is particular to them.

    Raises:
        ValueError: the name is taken or malformed.
        TypeError: ``kind`` is not a `DatasetKind`.
    """
    if not isinstance(kind, DatasetKind):
        raise TypeError(f"got {type(kind).__name__} for the data sets {name!r}, expected DatasetKind(open=...)")
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
    """The registered kinds as users write them: ``camvid:ROOT, folder:ROOT or scenes:N``."""
    specs = [f"{name}:{kind.metavar}" for name, kind in DATASET_KINDS.items() if wanted(kind)]
    return " or ".join(filter(None, (", ".join(specs[:-1]), specs[-1])))


def dataset_title(spec: str) -> str:
    """The name of the data set that a spec means, such as ``camvid`` or the folder's own."""
    name, _, rest = spec.partition(":")
    title = find_kind(spec).title
    return name if title is None else title(rest)


def find_kind(spec: str) -> DatasetKind:
    """The kind of the data set ``NAME:REST``. Raises DatasetError for a name that is not registered."""
    return _parse(spec)[0]


def open_source(spec: str) -> DataSource:
    """The data set ``NAME:REST`` with all its splits. Raises DatasetError where it cannot be used."""
    kind, rest = _parse(spec)
    return kind.open(rest)


def open_layout(spec: str) -> Layout:
    """The files of the data set ``NAME:REST``. Raises DatasetError where it cannot be used, or has no files."""
    source = open_source(spec)
    if not isinstance(source, Layout):
        raise DatasetError(f"{spec} is generated and has no files: there is nothing to check; expected data on disk")
    return source


def _parse(spec: str) -> tuple[DatasetKind, str]:
    name, _, rest = spec.partition(":")
    if name in DATASET_KINDS and rest:
        return DATASET_KINDS[name], rest
    near = difflib.get_close_matches(name[:80], DATASET_KINDS, n=1)
    hint = f"; did you mean {near[0]}:{DATASET_KINDS[near[0]].metavar}?" if near and near[0] != name else ""
    raise DatasetError(
        f"data set {spec!r} is unknown, expected {known_specs()}{hint}; a kind of your own must be registered first: "
        "import its module (--plugin MODULE)"
    )
