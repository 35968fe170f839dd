"""The suite growth on small images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command_line import run_speed


@pytest.mark.usefixtures("small_models")
def test_growth_is_drawn(tmp_path: Path) -> None:
    picture, out = tmp_path / "growth.png", tmp_path / "growth.json"
    sides = ["--side", "32", "--side", "64"]
    run_speed("--suite", "growth", *sides, "--repeats", "1", "--plot", picture, "--json", out)
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 100
    figures = json.loads(out.read_text())
    assert [row["size"] for row in figures["rows"]] == 3 * [[32, 32], [64, 64]] + [[64, 128]]
    assert {(row["batch"], row["dtype"], row["compiled"]) for row in figures["rows"]} == {(1, "fp32", "no")}
    assert all(row["median"] > 0 for row in figures["rows"])
    assert figures["rows"][-1]["extra_bytes"] > 4 * 19 * 64 * 128
    assert math.isfinite(figures["bars"][0]["value"])
