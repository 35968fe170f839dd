"""A rendered data set of a single class: bright blobs on dark noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.data_sets import write, write_labels

SIZE = (48, 64)


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and mask (H, W) of 0 and 1."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = np.zeros(SIZE, bool)
    for _ in range(2):
        row, column, radius = random.uniform(8, 40), random.uniform(8, 56), random.uniform(6, 12)
        mask |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    image = random.integers(0, 90, (*SIZE, 3)) + 120 * mask[..., None]
    return image.astype(np.uint8), mask.astype(np.uint8)


def write_binary_set(root: Path, train: int = 8, val: int = 3) -> Path:
    """Write ``labels.json`` with the one name "blob" and the splits. Ignored pixels are 255."""
    root.mkdir(parents=True, exist_ok=True)
    write_labels(root, names=["blob"])
    for split, count, first in (("train", train, 0), ("val", val, 100)):
        for index in range(count):
            image, mask = blobs(first + index)
            mask[0, :5] = 255
            write(root / f"images/{split}/{index}.png", image)
            write(root / f"masks/{split}/{index}.png", mask)
    return root
