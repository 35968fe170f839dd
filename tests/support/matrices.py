"""Small matrices, and logs of cells that nobody trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.evidence.cell import describe_training
from benchmarks.evidence.matrix import Cell, Matrix

QUICK = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence" / "quick.toml"

MATRIX = """
name = "small"
recipe = "tiny_scenes"
backbone_weights = false
seeds = [0, 1]
[folds]
by = "sequence"
names = ["north", "south"]
[arms.plain]
model = "uper_tiny"
[arms.ddsm]
model = "uper_ddsm_tiny"
title = "S + C"
[arms.s]
model = "uper_ddsm_s_tiny"
[arms.c]
model = "uper_ddsm_c_tiny"
[arms.dcn]
model = "uper_dcn_tiny"
"""


def write_matrix(path: Path, changes: Mapping[str, str] | None = None) -> Path:
    """The small matrix with some of its lines replaced."""
    text = MATRIX
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def write_log(
    folder: Path, matrix: Matrix, cell: Cell, miou: float, boundary_f: float, taps: Mapping[str, float] | None = None
) -> Path:
    """The log of a finished cell with these scores in percent, after an hour of training."""
    radii = ("0.00088", "0.001875", "0.00375", "0.005")
    score = {
        "event": "score",
        "miou": miou / 100,
        "boundary_f": {**dict.fromkeys(radii, boundary_f / 100), "mean": boundary_f / 100},
        "boundary_f_pixels": dict(zip(radii, ([1], [2], [3], [3]), strict=True)),
        "boundary_iou": miou / 200,
        "size": [360, 480],
        "params": 1_500_000,
        "multiply_adds": 2_500_000_000,
    }
    epochs = [{"event": "epoch", "epoch": number, "seconds": 1800, "taps_on_map": taps or {}} for number in (1, 2)]
    path = folder / f"{cell.name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    first = {**describe_training(matrix, cell), "images": {"train": 3, "val": 2, "sha256": cell.fold}}
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *epochs, score)))
    return path


def small(tmp_path: Path) -> Matrix:
    return Matrix.load(write_matrix(tmp_path / "small.toml"))
