"""``explain``: figures as files, and one line for what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.labels import CAMVID
from tests.support.command_line import run_command

Run = Callable[..., Any]
HALVES = ("spatial", "channel")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The addresses of saved models with random weights."""
    torch.manual_seed(0)
    folders = {}
    for name in ("uper_ddsm_tiny", "uper_tiny"):
        folder = tmp_path_factory.mktemp(name)
        ddsm_zoo.save_pretrained(ddsm_zoo.create_model(name, labels=CAMVID), folder)
        folders[name] = f"local-dir:{folder}"
    return folders


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command in a folder that holds a scene and its mask."""
    monkeypatch.chdir(tmp_path)
    image, mask = render_scene(0, (64, 96))
    Image.fromarray(image).save("street.png")
    Image.fromarray(mask).save("street_mask.png")
    return run_command


def test_a_pixel_is_explained(run: Run, tmp_path: Path, models: dict[str, str]) -> None:
    model = models["uper_ddsm_tiny"]
    arguments = ["explain", "street.png", "--at", "40,30", "-m", model, "-o", "deep/why.png"]
    figures = json.loads(run(*arguments, "--json", "-").stdout)
    assert figures["at"] == [40, 30]
    assert figures["class"] in CAMVID.names
    assert [level["stage"] for level in figures["levels"]] == [4, 3, 2]
    assert all(sum(level["affinities"]) == pytest.approx(1) for level in figures["levels"])
    assert np.asarray(Image.open(tmp_path / "deep" / "why.png").convert("L")).std() > 10
    said = run(*arguments).stdout
    assert figures["class"] in said
    # the plain grid: on an axis of 4 channels, 10 of the 12 taps are inside
    assert figures["taps_on_map"]["decoder.fusions.2.channel"] == pytest.approx((10 / 12) ** 2)
    assert set(figures["taps_on_map"]) == {f"decoder.fusions.{i}.{half}" for i in range(3) for half in HALVES}
    assert "decoder.fusions.2.channel: 69% of its taps read the map" in said


def test_two_models_are_compared(run: Run, tmp_path: Path, models: dict[str, str]) -> None:
    arguments = [
        "explain",
        "street.png",
        "--compare",
        *models.values(),
        "--mask",
        "street_mask.png",
        "-o",
        "errors.svg",
    ]
    result = run(*arguments)
    assert (tmp_path / "errors.svg").read_text().startswith("<?xml")
    for address in models.values():
        assert f"{address}: " in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected one of --at X,Y and --compare A B"),
        (["--at", "1,2", "--compare", "a", "b"], "expected one of --at X,Y and --compare A B"),
        (["--at", "middle"], "--at is 'middle', expected the pixel's column and row such as 312,180"),
        (["--at", "96,0"], "the pixel 96,0 lies outside the image, expected 0,0 to 95,63"),
        (["--at", "-1,0"], "--at is '-1,0'"),
        (["--at", "1,2", "--mask", "street_mask.png"], "belong together"),
        (["--compare", "uper_ddsm_tiny", "uper_tiny"], "belong together"),
        (["--compare", "uper_tiny", "uper_tiny", "--mask", "street_mask.png"], "got uper_tiny twice"),
        (["--at", "1,2", "-o", "why.txt"], "why.txt has no format of a figure"),
        (["--at", "1,2", "-o", "/proc/why.png"], "cannot write /proc"),
        (["--at", "1,2", "-m", "uper_tiny"], "an architecture without task weights"),
    ],
)
def test_what_cannot_be(run: Run, tmp_path: Path, models: dict[str, str], options: list[str], message: str) -> None:
    model = [] if "-m" in options or "--compare" in options else ["-m", models["uper_ddsm_tiny"]]
    assert message in run("explain", "street.png", *options, *model, fails=1).stderr
    assert {path.name for path in tmp_path.iterdir()} == {"street.png", "street_mask.png"}


def test_a_model_that_samples_nothing_and_files_that_are_not_there(run: Run, models: dict[str, str]) -> None:
    plain = run("explain", "street.png", "--at", "1,2", "-m", models["uper_tiny"], fails=1)
    assert "uper_tiny has the fusion 'none', which samples no pixels" in plain.stderr
    missing = run("explain", "nowhere.png", "--at", "1,2", "-m", models["uper_ddsm_tiny"], fails=1)
    assert "no image file at nowhere.png" in missing.stderr
    compare = ["--compare", *models.values(), "--mask"]
    assert "nowhere.png" in run("explain", "street.png", *compare, "nowhere.png", fails=1).stderr
    assert (
        "expected one of the 12 colors of the classes"
        in run("explain", "street.png", *compare, "street.png", fails=1).stderr
    )
