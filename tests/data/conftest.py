from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.data_sets import IDS, IMAGE, write, write_labels


@pytest.fixture
def segnet(tmp_path: Path) -> Path:
    """CamVid as SegNet distributes it: two training images and one for validation."""
    for split, names in {"train": ("b", "a"), "val": ("c",)}.items():
        for name in names:
            write(tmp_path / split / f"{name}.png", IMAGE)
            write(tmp_path / f"{split}annot" / f"{name}.png", IDS)
    return tmp_path


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    write(tmp_path / "images/train/a.png", IMAGE)
    write(tmp_path / "masks/train/a.png", IDS % 3)
    write_labels(tmp_path)
    return tmp_path
