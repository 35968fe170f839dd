"""A data set that lies as Cityscapes does, with objects, and what the benchmark's own scripts say about predictions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813 - their module name
from PIL import Image

HEIGHT, WIDTH = 48, 80
# Label ids: void of several kinds, things with and without objects, and a caravan, which only the objects know
STUFF = (0, 1, 4, 7, 8, 9, 11, 12, 13, 17, 19, 20, 21, 22, 23, 26, 24)
THINGS = (24, 25, 26, 26, 26, 27, 28, 29, 30, 32, 33, 24)


def write_root(root: Path, names: Sequence[str], split: str = "val", *, masks: bool = True) -> list[Path]:
    """Images and, with ``masks``, label and instance ids of random rectangles; the files of label ids."""
    generator = np.random.default_rng(7)
    files = []
    for name in names:
        city = name.split("_")[0]
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        instances = np.zeros((HEIGHT, WIDTH), np.uint16)
        for place, label in enumerate([*STUFF, *THINGS]):
            top, left = generator.integers(0, HEIGHT - 4), generator.integers(0, WIDTH - 4)
            box = slice(top, top + generator.integers(3, 30)), slice(left, left + generator.integers(3, 40))
            labels[box] = label
            instances[box] = label if place < len(STUFF) else 1000 * label + place
        image = Image.fromarray(generator.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8))
        save(image, root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        if masks:
            folder = root / "gtFine" / split / city
            files.append(save(Image.fromarray(labels), folder / f"{name}_gtFine_labelIds.png"))
            save(Image.fromarray(instances), folder / f"{name}_gtFine_instanceIds.png")
    return files


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def official_scores(labels: Sequence[Path], predictions: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Find the predictions and score them as evalPixelLevelSemanticLabeling does when called without arguments."""
    # The scripts call this by the name that NumPy 2.4 dropped
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    arguments = argparse.Namespace(**vars(official.args))
    arguments.predictionPath, arguments.predictionWalk = str(predictions), None
    arguments.quiet, arguments.JSONOutput = True, False
    found = [official.getPrediction(arguments, str(file)) for file in labels]
    scores: dict[str, Any] = official.evaluateImgLists(found, [str(file) for file in labels], arguments)
    return scores
