"""Small data sets in the ways people store them: one set of scenes with a background, a square and a disc."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("bg", "square", "disc")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
SIZE = (24, 32)
COUNTS = {"train": 3, "val": 2}

Save = Callable[[np.ndarray, Path], object]


def scene(seed: int) -> np.ndarray:
    """Class ids (H, W) in which all three classes occur."""
    numbers = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    ids = np.zeros(SIZE, np.uint8)
    top, left = numbers.integers(1, 8), numbers.integers(1, 8)
    ids[top : top + 8, left : left + 8] = 1
    ids[(rows - numbers.integers(14, 20)) ** 2 + (columns - numbers.integers(20, 26)) ** 2 < 20] = 2
    return ids


def photo(ids: np.ndarray, seed: int) -> np.ndarray:
    colors = np.array([[90, 120, 60], [200, 60, 40], [40, 80, 210]])[ids]
    return np.clip(colors + np.random.default_rng(seed).integers(-25, 25, colors.shape), 0, 255).astype(np.uint8)


def store(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask).save(path)


def build(root: Path, save: Save = store, classes: int = 3, **labels: object) -> Path:
    """Write the data set, its masks by ``save``, with as many of its classes. ``labels`` are fields of labels.json."""
    for split, name, ids in truth(classes):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(ids, len(name) + ord(name[-1]))).save(root / "images" / split / f"{name}.png")
        save(ids, root / "masks" / split / f"{name}.png")
    (root / "labels.json").write_text(json.dumps({"names": NAMES[:classes], **labels}))
    return root


def truth(classes: int = 3) -> list[tuple[str, str, np.ndarray]]:
    """Split, name and class ids of each image."""
    found = []
    for split, count in COUNTS.items():
        for index in range(count):
            ids = scene(10 * len(split) + index)
            found.append((split, f"{split}{index}", np.minimum(ids, classes - 1)))
    return found


def guess(ids: np.ndarray) -> np.ndarray:
    """A prediction with errors in every class."""
    return np.roll(ids, (2, 3), (0, 1))


def write_predictions(folder: Path, save: Save = store, classes: int = 3) -> Path:
    """Write guesses for the split val."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, name, ids in truth(classes):
        if split == "val":
            save(guess(ids), folder / f"{name}.png")
    return folder


def mean_iou(classes: int = 3) -> float:
    """The right score of the guesses on val, counted by numpy."""
    pairs = [(ids, guess(ids)) for split, _, ids in truth(classes) if split == "val"]
    target, given = (np.concatenate([each[side].ravel() for each in pairs]) for side in (0, 1))
    scores = []
    for index in range(classes):
        union = ((target == index) | (given == index)).sum()
        scores.append(((target == index) & (given == index)).sum() / union)
    return float(np.mean(scores))


def relabeled(values: Mapping[int, int], dtype: type = np.uint8) -> Save:
    """Store each class id as another value."""
    return lambda ids, path: store(np.vectorize(values.get)(ids).astype(dtype), path)


def equal_channels(save: Callable[[np.ndarray], np.ndarray] = lambda mask: mask, channels: int = 3) -> Save:
    """Store three equal channels, and an opaque fourth."""

    def write(ids: np.ndarray, path: Path) -> None:
        stored = np.repeat(save(ids).astype(np.uint8)[..., None], 3, 2)
        opaque = np.full((*ids.shape, channels - 3), 255, np.uint8)
        store(np.concatenate([stored, opaque], 2), path)

    return write


def colored(ids: np.ndarray, path: Path) -> None:
    store(np.array(PALETTE, np.uint8)[ids], path)


def shuffled(ids: np.ndarray, path: Path) -> None:
    """Store a palette image whose palette is in another order in every file."""
    order = np.random.default_rng(len(path.stem) + ord(path.stem[-1])).permutation(3)
    image = Image.fromarray(order.astype(np.uint8)[ids])
    image.putpalette([channel for index in np.argsort(order) for channel in PALETTE[index]])
    image.save(path)


def renamed(suffix: str) -> Save:
    return lambda ids, path: store(ids, path.with_name(f"{path.stem}{suffix}.png"))


def jpeg(ids: np.ndarray, path: Path) -> None:
    Image.fromarray(ids * np.uint8(100)).save(path, format="jpeg", quality=95)
