"""Data sets for the label doctor: one that is sound, to be spoilt, and what is found in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddsm_zoo.data.check.report import Report, check_data
from tests.support.data_sets import write

SIZE = (12, 16)
IDS = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE) % 3
NAMES = ["road", "car", "sky"]


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def build(root: Path, masks: Mapping[str, np.ndarray], **labels: object) -> Path:
    """A data set of the kind folder with these masks by ``split/name``, and a picture of its own for each."""
    for seed, (name, mask) in enumerate(masks.items()):
        write(root / "images" / f"{name}.png", picture(seed, mask.shape[:2]))
        write(root / "masks" / f"{name}.png", mask)
    (root / "labels.json").write_text(json.dumps({"names": NAMES, **labels}))
    return root


def four(mask: np.ndarray = IDS) -> dict[str, np.ndarray]:
    return {name: mask.copy() for name in ("train/a", "train/b", "train/c", "val/d")}


def found(report: Report) -> dict[tuple[str, str], tuple[str, int]]:
    return {(problem.split, problem.kind): (problem.severity, problem.count) for problem in report.problems}


def text_of(report: Report, kind: str) -> str:
    return next(str(problem) for problem in report.problems if problem.kind == kind)


def check(root: Path, kind: str = "folder", *, quick: bool = False) -> Report:
    report = check_data(f"{kind}:{root}", quick=quick)
    assert all("\n" not in str(problem) for problem in report.problems)
    return report
