"""Folds of a data set as folders of links, which `ddsm-zoo train --data` and `evaluate --data` take as they are."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.evidence.matrix import FoldPlan
from ddsm_zoo.data.datasets import DatasetError, Pair, SegmentationDataset
from ddsm_zoo.data.kinds import find_kind, open_source
from ddsm_zoo.data.layouts import LABELED_SPLITS
from ddsm_zoo.data.mask_files import read_stored
from ddsm_zoo.data.masks import CAMVID_IDS
from ddsm_zoo.data.scenes.dataset import Scenes
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.utils.files import write_json

SCENE_SIZE = (120, 160)
_RECORD = "fold.json"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """All labeled images of a data set by name, and where its layout has images and masks of a split."""

    kind: str  # camvid or folder
    root: Path
    pairs: Mapping[str, Pair]
    folders: tuple[str, str]

    @property
    def names(self) -> list[str]:
        """Names in order, numbers by their value: 2 before 10."""
        return sorted(self.pairs, key=_natural)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The images that one fold trains on and the ones that it holds out."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]


def read_pool(spec: str) -> Pool:
    """The splits train and val of ``camvid:ROOT`` or ``folder:ROOT`` together.

    Raises DatasetError for another kind of data, for a name in both splits, and what `open_dataset` raises.
    """
    kind, _, root = spec.partition(":")
    if kind not in _FOLDERS:
        raise DatasetError(f"folds are made of camvid:ROOT, folder:ROOT or scenes:N, got {spec!r}")
    source = open_source(spec)
    present = source.splits()
    sets = [source.open(split) for split in LABELED_SPLITS if split == "train" or split in present]
    pairs: dict[str, Pair] = {}
    for pair in (pair for each in sets for pair in each.pairs):
        if pair.name in pairs:
            raise DatasetError(f"{root} has {pair.name} in train and in val, expected each name once; rename one")
        pairs[pair.name] = pair
    folders = _FOLDERS[kind](root, sets)
    return Pool(kind=kind, root=Path(root).expanduser().absolute(), pairs=pairs, folders=folders)


def _camvid_folders(root: str, sets: Sequence[SegmentationDataset]) -> tuple[str, str]:
    stored_as_ids = {each.decode is CAMVID_IDS for each in sets}
    if len(stored_as_ids) > 1:
        raise DatasetError(f"{root} has masks of class ids in one split and of colors in the other, expected one kind")
    return ("{}", "{}annot") if stored_as_ids == {True} else ("{}", "{}_labels")


# The kinds of data whose folds can be written, with the folders that they have images and masks of a split in
_FOLDERS: Mapping[str, Callable[[str, Sequence[SegmentationDataset]], tuple[str, str]]] = {
    "camvid": _camvid_folders,
    "folder": lambda _root, _sets: ("images/{}", "masks/{}"),
}


# Told of a fold that cannot be, in one line; the other folds go on
Refuse = Callable[[str], None]


def plan_folds(pool: Pool, plan: FoldPlan, refuse: Refuse | None = None) -> list[Fold]:
    """The folds of a plan, without those that ``refuse`` is told of.

    Raises DatasetError where no fold is left and, without ``refuse``, for a sequence that the data does not have and a
    fold without images to train on or to validate on.
    """
    names = pool.names
    held = _sequences(names, plan) if plan.by == "sequence" else _blocks(names, plan)
    folds = []
    for fold, val in held:
        made = Fold(name=fold, train=tuple(name for name in names if name not in set(val)), val=tuple(val))
        if made.train and made.val:
            folds.append(made)
        elif refuse is None:
            raise DatasetError(_unusable(pool, plan, made))
        else:
            refuse(_unusable(pool, plan, made))
    if not folds:
        raise DatasetError(f"{pool.root} has images for none of the folds {', '.join(plan.folds)}")
    return folds


def _unusable(pool: Pool, plan: FoldPlan, fold: Fold) -> str:
    if plan.by == "sequence" and not fold.val:
        present = Counter(map(_sequence, pool.names))
        found = ", ".join(f"{known[:40]} ({present[known]})" for known in sorted(present)[:8])
        return f"the data has no sequence {fold.name}, it has {found}"
    empty = "validate on" if fold.train else "train on"
    return f"fold {fold.name} of {pool.root} has no images to {empty}; it has {len(pool.names)} in all"


def never_held_out(folds: Iterable[Fold]) -> list[str]:
    """Names of the images that every fold trains on, such as those of sequences that the plan does not name."""
    folds = list(folds)
    held = {name for fold in folds for name in fold.val}
    return [name for name in folds[0].train if name not in held]


def write_folds(pool: Pool, plan: FoldPlan, out: Path, refuse: Refuse | None = None) -> dict[str, tuple[str, Fold]]:
    """Make a folder for each fold in ``out``, or check the one that is there.

    Returns the data set (``camvid:FOLDER``, ``folder:FOLDER``) and the fold by the fold's name. Raises DatasetError for
    a folder that holds another fold, and what `plan_folds` raises, before anything is written.
    """
    made = {}
    for fold in plan_folds(pool, plan, refuse):
        target = out / fold.name
        record = {"source": str(pool.root), "ids": dict(plan.ids), "train": list(fold.train), "val": list(fold.val)}
        if not target.exists():
            _write_fold(pool, fold, plan, target, record)
        if _read(target / _RECORD) != record:
            raise DatasetError(f"{target} is not this fold of {pool.root}; delete it or choose another folder")
        made[fold.name] = (f"{pool.kind}:{target}", fold)
    return made


def write_scenes(folder: Path, sequences: Sequence[str], count: int) -> str:
    """Render ``count`` scenes of each sequence into ``folder``, unless it is there; ``camvid:FOLDER``."""
    if not folder.exists():
        with _appearing(folder) as temporary:
            for number, sequence in enumerate(sequences):
                for index in range(count):
                    image, mask = render_scene(1000 * number + index, SCENE_SIZE)
                    stored = np.where(mask == 255, 11, mask).astype(np.uint8)
                    for kind, pixels in (("train", image), ("trainannot", stored)):
                        (temporary / kind).mkdir(exist_ok=True)
                        Image.fromarray(pixels).save(temporary / kind / f"{sequence}_{index:03d}.png")
    return f"camvid:{folder}"


def open_folds(spec: str, plan: FoldPlan, out: Path, refuse: Refuse | None = None) -> dict[str, tuple[str, Fold]]:
    """`write_folds` into ``out/folds`` for ``camvid:ROOT``, ``folder:ROOT`` or ``scenes:N`` (N in each sequence)."""
    if find_kind(spec).open is Scenes:
        count = Scenes(spec.partition(":")[2]).count
        if plan.by != "sequence" or count > 1000:
            raise DatasetError(f"got {spec!r}, expected scenes:N with N from 1 to 1000 for a matrix of sequences")
        spec = write_scenes(out / f"scenes{count}", plan.names, count)
    return write_folds(read_pool(spec), plan, out / "folds", refuse)


def _sequences(names: Sequence[str], plan: FoldPlan) -> Iterator[tuple[str, list[str]]]:
    present: dict[str, list[str]] = {}
    for name in names:
        present.setdefault(_sequence(name), []).append(name)
    for sequence in plan.names:
        yield sequence, present.get(sequence, [])


def _sequence(name: str) -> str:
    return name.partition("_")[0]


def _blocks(names: Sequence[str], plan: FoldPlan) -> Iterator[tuple[str, list[str]]]:
    """Runs of neighbors whose lengths differ by one at most."""
    for number, fold in enumerate(plan.folds):
        start, end = (len(names) * edge // plan.count for edge in (number, number + 1))
        yield fold, list(names[start:end])


def _write_fold(pool: Pool, fold: Fold, plan: FoldPlan, target: Path, record: Mapping[str, object]) -> None:
    with _appearing(target) as temporary:
        for split, names in (("train", fold.train), ("val", fold.val)):
            images, masks = (temporary / folder.format(split) for folder in pool.folders)
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for name in names:
                pair = pool.pairs[name]
                _link(pair.image, images / pair.image.name)
                if plan.ids:
                    _translate(pair.mask, plan.ids, masks / f"{name}.png")
                else:
                    _link(pair.mask, masks / pair.mask.name)
        if (labels := pool.root / "labels.json").is_file():
            shutil.copyfile(labels, temporary / "labels.json")
        write_json(temporary / _RECORD, record)


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` in one step, unless another process was faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        yield made
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _link(source: Path, target: Path) -> None:
    """A symbolic link, or a copy where the system makes none."""
    try:
        target.symlink_to(source.absolute())
    except (OSError, NotImplementedError):  # file systems without links, and Windows without the right to make them
        shutil.copyfile(source, target)


def _translate(source: Path, ids: Mapping[str, int], target: Path) -> None:
    """Write a mask whose stored values are replaced by class ids."""
    stored = read_stored(source).values
    table = {int(value): number for value, number in ids.items()}
    unknown = sorted(set(np.unique(stored).tolist()) - table.keys())
    if unknown or stored.ndim != 2:
        raise DatasetError(f"mask {source} holds {unknown[:3] or 'colors'}, expected the values {sorted(table)}")
    lookup = np.zeros(65536, dtype=np.uint8)
    for value, number in table.items():
        lookup[value] = number
    Image.fromarray(lookup[stored]).save(target)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)]
