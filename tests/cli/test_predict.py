"""``predict`` on more than a few small images: tiles, memory, precision, videos, many files at once."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ddsm_zoo
from ddsm_zoo import Predictor
from ddsm_zoo.cli.predict import UNITS, parse_memory, parse_tile, unfamiliar_notes
from ddsm_zoo.config import WeightsSpec
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.inference.folder import FileResult
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.zoo.publishing import describe_weights
from tests.support.command_line import run_command
from tests.support.deep_images import write_png
from tests.support.errors import raises

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a saved model of CamVid's classes with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    ddsm_zoo.save_pretrained(ddsm_zoo.create_model("uper_ddsm_tiny", labels=CAMVID), folder)
    return f"local-dir:{folder}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run_command


def write_scene(path: Path, seed: int, size: tuple[int, int]) -> Path:
    Image.fromarray(render_scene(seed, size)[0]).save(path)
    return path


def ids(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_tiles_give_the_classes_of_the_whole(run: Run, tmp_path: Path, tiny: str) -> None:
    write_scene(tmp_path / "wide.png", 1, (100, 1000))
    run("predict", "wide.png", "-m", tiny, "-o", "whole")
    run("predict", "wide.png", "-m", tiny, "-o", "tiles", "--tile", "768")
    run("predict", "wide.png", "-m", tiny, "-o", "auto", "--tile", "auto", "--memory", "1 GiB")
    whole, tiles, auto = (ids(tmp_path / name / "wide_ids.png") for name in ("whole", "tiles", "auto"))
    assert whole.shape == (100, 1000)
    assert (whole == tiles).mean() >= 0.999
    assert np.array_equal(whole, auto)


def test_more_pixels_than_pillow_decodes_unasked(run: Run, tmp_path: Path, tiny: str) -> None:
    Image.new("L", (300_000, 600)).save(tmp_path / "strip.png")
    assert "too large to be decoded safely" in run("predict", "strip.png", "-m", tiny, fails=1).stderr
    small = run("predict", "strip.png", "-m", tiny, "--tile", "auto", "--memory", "2GiB", fails=1)
    assert "too large to be decoded safely" in small.stderr


def test_many_images_keep_their_order_and_a_bad_one_stops_none(run: Run, tmp_path: Path, tiny: str) -> None:
    names = [f"{number:02}.png" for number in range(20)]
    for number, name in enumerate(names):
        write_scene(tmp_path / name, number, (16 + number, 24))
    for bad in ("03.png", "11.png"):
        (tmp_path / bad).write_bytes(b"no image")
    result = run("predict", *names, "-m", tiny, "-o", "out", "--json", "figures.json", fails=2)
    figures = json.loads((tmp_path / "figures.json").read_text())
    good = [name for name in names if name not in ("03.png", "11.png")]
    assert [entry["image"] for entry in figures["images"]] == good
    for entry in figures["images"]:
        assert ids(tmp_path / entry["files"]["ids"]).shape == (16 + int(entry["image"][:2]), 24)
    assert [failure["image"] for failure in figures["failures"]] == ["03.png", "11.png"]
    assert result.stderr.index("03.png") < result.stderr.index("11.png")


def test_bfloat16(run: Run, tmp_path: Path, tiny: str) -> None:
    write_scene(tmp_path / "street.png", 0, (64, 64))
    run("predict", "street.png", "-m", tiny, "--precision", "bf16")
    assert ids(tmp_path / "predictions" / "street_ids.png").shape == (64, 64)


def test_a_clip_and_an_image(run: Run, tmp_path: Path, tiny: str) -> None:
    write_scene(tmp_path / "drive.png", 0, (32, 48))
    with av.open(str(tmp_path / "drive.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for seed in range(6):
            frame = av.VideoFrame.from_ndarray(render_scene(seed, (32, 48))[0], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    arguments = ["predict", "drive.png", "drive.mp4", "broken.mp4", "-m", tiny, "-o", "out", "--frames", "5"]
    figures = json.loads(run(*arguments, "--json", "-", fails=1).stdout)
    (clip,) = figures["videos"]
    assert clip["frames"] == 5
    assert clip["size"] == [32, 48]
    assert clip["frames_per_second"] > 0
    assert sum(clip["shares"].values()) == pytest.approx(1)
    with av.open(clip["files"]["overlay"]) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert [failure["image"] for failure in figures["failures"]] == ["broken.mp4"]
    assert len(set(figures["images"][0]["files"].values()) | {clip["files"]["overlay"]}) == 4
    assert "frames/s" in run(*arguments[:3], "-m", tiny, "-o", "out").stdout


def test_a_second_run_leaves_the_first_alone_unless_asked(run: Run, tmp_path: Path, tiny: str) -> None:
    write_scene(tmp_path / "street.png", 0, (16, 24))
    run("predict", "street.png", "-m", tiny, "-o", "out")
    (tmp_path / "out" / "street_ids.png").write_bytes(b"kept")
    second = run("predict", "street.png", "-m", tiny, "-o", "out", "--json", "-")
    assert "out has results of these names: the new ones go to out-2 (--overwrite replaces the old)" in second.stderr
    assert json.loads(second.stdout)["images"][0]["files"]["ids"] == str(Path("out-2", "street_ids.png"))
    write_scene(tmp_path / "other.png", 0, (16, 24))
    run("predict", "other.png", "-m", tiny, "-o", "out")
    assert (tmp_path / "out" / "street_ids.png").read_bytes() == b"kept"
    assert (tmp_path / "out" / "other_ids.png").is_file()
    run("predict", "street.png", "-m", tiny, "-o", "out", "--overwrite")
    assert ids(tmp_path / "out" / "street_ids.png").shape == (16, 24)


def test_what_people_bring(run: Run, tmp_path: Path, tiny: str) -> None:
    """A folder of a phone's card: everything that is left out or read in part is said, and nothing stops the rest."""
    folder = tmp_path / "card"
    folder.mkdir()
    scene = render_scene(0, (16, 24))[0]
    strange = os.fsdecode(b"caf\xe9.jpg")
    Image.fromarray(scene).save(folder / strange)
    (folder / "._x.JPG").write_bytes(b"\x00\x05\x16\x07")
    (folder / "y.heic").touch()
    write_png(folder / "thermal.png", scene[..., 0].astype(np.uint16) * 4)
    pages = [Image.fromarray(scene) for _ in range(4)]
    pages[0].save(folder / "stack.tif", save_all=True, append_images=pages[1:])
    done = run("predict", "card", "-m", tiny, "--json", "-")
    figures = json.loads(done.stdout)
    assert [Path(entry["image"]).name for entry in figures["images"]] == [strange, "stack.tif", "thermal.png"]
    assert all(0 < entry["confidence"] <= 1 for entry in figures["images"])
    assert figures["left_out"] == {"hidden files": 1, "images of other formats": 1}
    largest = 4 * int(scene[..., 0].max())
    assert f"thermal.png ({largest}): values of up to {largest} where 16 bits reach 65535" in done.stderr
    assert "stack.tif (4 pages): only the first is read" in done.stderr
    bright = run("predict", str(folder / "thermal.png"), "-m", tiny, "--bits", "10", "-o", "bits", "--json", "-")
    assert "65535" not in bright.stderr
    assert json.loads(bright.stdout)["images"][0]["confidence"] != figures["images"][2]["confidence"]
    assert "has the value" in run("predict", folder / "thermal.png", "-m", tiny, "--bits", "8", fails=1).stderr


def test_a_video_cut_short_is_an_error_with_a_clip(run: Run, tmp_path: Path, tiny: str) -> None:
    with av.open(str(tmp_path / "drive.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 32, 48, "yuv420p", 4
        for _ in range(12):
            noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    whole = (tmp_path / "drive.mp4").read_bytes()
    (tmp_path / "drive.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    done = run("predict", "drive.mp4", "-m", tiny, "--json", "figures.json", fails=1)
    (clip,) = json.loads((tmp_path / "figures.json").read_text())["videos"]
    assert 0 < clip["frames"] == 12 - clip["lost"] < 12
    assert Path(clip["files"]["overlay"]).is_file()
    assert f"error: drive.mp4: {clip['lost']} of 12 frames are lost" in done.stderr


def test_the_bundled_model_says_what_it_is_for_and_what_looks_unlike_it(run: Run, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    write_scene(tmp_path / "street.png", 0, (180, 240))
    done = run("predict", "noise.png", "street.png", "--json", "figures.json")
    assert "uper_ddsm_lite0_camvid is trained for street scenes: Sky, Building, Pole, Road" in done.stderr
    noisy, street = (entry["confidence"] for entry in json.loads((tmp_path / "figures.json").read_text())["images"])
    assert noisy < 0.9 < street
    (line,) = (line for line in done.stderr.splitlines() if "looks unlike street scenes" in line)
    assert line.startswith(f"noise.png ({noisy:.2f}): looks unlike street scenes, where the mean confidence is above")
    assert f"mean of 2 images, mean confidence {50 * (noisy + street):.2f} %" in done.stdout


def test_a_limit_of_confidence_that_nobody_measured_is_no_claim() -> None:
    model = ddsm_zoo.create_model("uper_tiny", labels=["soil", "weed"])
    spec = WeightsSpec(uri="file:x", dataset="field", labels=model.provenance.labels)
    describe_weights(model, spec)
    results = [FileResult(source="a.png", confidence=0.5), FileResult(source="b.png", confidence=0.7)]
    (note,) = unfamiliar_notes(results, Predictor(model))
    assert note.startswith(
        "a.png (0.50): mean confidence below 0.60: looks unlike images of field, or the model is unsure"
    )
    describe_weights(model, dataclasses.replace(spec, familiar=0.8))
    (note,) = unfamiliar_notes(results, Predictor(model))
    assert "b.png (0.70): looks unlike images of field, where the mean confidence is above 0.80" in note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "100"], "tile is 100, expected 'auto' or a number of pixels from"),
        (["--tile", "half"], "--tile is 'half', expected auto or a number"),
        (["--memory", "much"], "--memory is 'much', expected an amount such as 4GiB"),
        (["--memory", "4GiB"], "got --memory 4GiB alone, expected --tile with it"),
        (["--palette", "bright"], "palette is 'bright', expected contrast or own"),
        (["--precision", "fp8"], "precision is 'fp8', expected fp32, bf16, auto"),
        (["--camera", "63"], "/dev/video63 cannot be read as a video"),
    ],
)
def test_what_cannot_be(run: Run, tmp_path: Path, tiny: str, options: list[str], message: str) -> None:
    write_scene(tmp_path / "street.png", 0, (16, 16))
    assert message in run("predict", "street.png", "-m", tiny, *options, fails=1).stderr


@given(st.integers(1, 10**12), st.sampled_from(sorted(UNITS)), st.booleans(), st.booleans())
def test_amounts_of_memory(amount: int, unit: str, capital: bool, space: bool) -> None:
    text = f"{amount}{' ' if space else ''}{unit.upper() if capital else unit}"
    assert parse_memory(text) == amount * UNITS[unit]


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "1e9", "4TiB", "GiB", "4 GiB of it", "4\n", "\u0664GiB"])
def test_other_amounts_are_refused(text: str) -> None:
    with raises(ValueError, kind="argument", name="--memory", got=text):
        parse_memory(text)


@pytest.mark.parametrize("text", ["", "-3", "1.5", "\u0663", "Auto", "512 "])
def test_other_tiles_are_refused(text: str) -> None:
    with raises(ValueError, kind="argument", name="--tile", got=text):
        parse_tile(text)


def test_tiles() -> None:
    assert [parse_tile(text) for text in (None, "auto", "1024")] == [None, "auto", 1024]


def test_a_missing_file_is_named_before_a_model_is_looked_for(run: Run, tmp_path: Path) -> None:
    done = run("predict", "missing.jpg", "-m", "hf-hub:nobody/nothing", "--json", "-", fails=1)
    assert "missing.jpg" in done.stderr
    assert [failure["image"] for failure in json.loads(done.stdout)["failures"]] == ["missing.jpg"]
    assert not (tmp_path / "predictions").exists()
