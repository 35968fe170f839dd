"""The notebook runs from its first cell to its last, on fewer and smaller images."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import ddsm_zoo
from tests.support.pages import ROOT

NOTEBOOK = ROOT / "examples" / "finetune.ipynb"
SWAPS = {
    "range(24)": "range(4)",
    "number < 16": "number < 2",
    "(180, 240)": "(48, 64)",
    '"20.png"': '"3.png"',
    '"epochs": 6': '"epochs": 1, "crop_size": (32, 64), "model": "uper_ddsm_tiny"',
    ", pretrained=True": ", pretrained=False",
    "bootstrap=200": "bootstrap=20",
}


def sources(kind: str) -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def test_runs_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    unused = set(SWAPS)
    for number, code in enumerate(sources("code")):
        for old, new in SWAPS.items():
            unused -= {old} if old in code else set()
            code = code.replace(old, new)
        exec(compile(ast.parse(code), f"cell {number}", "exec"), names)
    assert not unused, "the notebook no longer has these"
    assert isinstance(names["result"], ddsm_zoo.Segmentation)
    assert names["result"].mask.shape == (48, 64)
    assert 0 <= names["scores"]["miou"] <= 1


def test_is_saved_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")


def test_its_links_lead_somewhere() -> None:
    for text in sources("markdown"):
        for link in text.split("](")[1:]:
            assert (NOTEBOOK.parent / link.partition(")")[0]).exists()
