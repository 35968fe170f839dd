"""Small data sets on disk, and the form that every complaint about one has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.datasets import DatasetError

SIZE = (6, 8)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
IDS = np.arange(48, dtype=np.uint8).reshape(SIZE) % 11


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_labels(root: Path, **content: object) -> None:
    (root / "labels.json").write_text(json.dumps({"names": ["road", "car", "sky"], **content}))


def painted(ids: np.ndarray, colors: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(colors, dtype=np.uint8)[ids]


def expect_one_line(call: Callable[[], object], *parts: str, kind: type[Exception] = DatasetError) -> None:
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
