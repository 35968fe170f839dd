"""A folder of images becomes a folder of results, with one record for each image, whatever some of the files hold."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo import Predictor
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.inference.folder import free_folder, free_stem, predict_folder, result_stems
from ddsm_zoo.inference.inputs import Inputs
from ddsm_zoo.inference.tiling import MIN_SIDE
from ddsm_zoo.labels import CAMVID
from tests.support.errors import raises


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(ddsm_zoo.create_model("uper_ddsm_tiny", labels=CAMVID))


def write_scene(path: Path, seed: int = 0, size: tuple[int, int] = (24, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render_scene(seed, size)[0]).save(path)
    return path


def test_a_record_has_what_the_predictor_says_of_the_image(predictor: Predictor, tmp_path: Path) -> None:
    paths = [write_scene(tmp_path / "in" / f"{seed}.png", seed, (16 + seed, 24)) for seed in range(3)]
    results = predict_folder(predictor, tmp_path / "in", tmp_path / "out")
    assert [result.source for result in results] == [str(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        alone = predictor(path)
        assert result.error is None
        assert result.size == alone.mask.shape
        assert result.shares == alone.shares()
        assert 1 / len(CAMVID) < result.confidence == alone.confidence <= 1
        assert set(result.files) == {"ids", "color", "overlay"}
        assert np.array_equal(np.asarray(Image.open(result.files["ids"])), alone.mask)
        plain = result.to_dict()
        assert plain["size"] == list(alone.mask.shape)
        assert plain["files"]["ids"] == str(tmp_path / "out" / f"{path.stem}_ids.png")


@pytest.mark.parametrize("sources", ["in", ["in"], [Path("in")], "in/**/*.png", "all.txt", "@all.txt"])
def test_sources(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: object) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["in/a.png", "in/sub/b.png", "in/sub/deeper/c.png"]
    for name in names:
        write_scene(Path(name))
    Path("all.txt").write_text("\n".join(names))
    results = predict_folder(predictor, sources, "out")
    assert [result.to_dict()["image"] for result in results] == names


def test_bad_files_are_recorded_in_their_place(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_scene(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    sources = [tmp_path / name for name in ("bad.png", "missing.png", "good.png", "empty")]
    missing, empty, bad, good = predict_folder(predictor, sources, tmp_path / "out")
    assert good.error is None
    for result, name in ((empty, "empty"), (bad, "bad.png"), (missing, "missing.png")):
        assert result.source == str(tmp_path / name)
        assert name in result.error
        assert "\n" not in result.error
        assert not result.files
        assert result.to_dict() == {"image": result.source, "error": result.error}
    assert "no images in the folder" in empty.error
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in good.files.values()}


def test_what_cannot_be_written_is_recorded(predictor: Predictor, tmp_path: Path) -> None:
    paths = [write_scene(tmp_path / f"{stem}.png") for stem in "ab"]
    (tmp_path / "out" / "a_overlay.png").mkdir(parents=True)
    first, second = predict_folder(predictor, paths, tmp_path / "out")
    assert first.error.startswith("cannot write")
    assert second.error is None
    assert {path.name for path in (tmp_path / "out").glob("a_*")} == {"a_overlay.png"}


def test_broken_videos_and_images_share_the_names(predictor: Predictor, tmp_path: Path) -> None:
    write_scene(tmp_path / "drive.png")
    (tmp_path / "drive.mp4").write_bytes(b"no video")
    image, video = predict_folder(predictor, [tmp_path / "drive.mp4", tmp_path / "drive.png"], tmp_path / "out")
    assert image.files["overlay"].name == "drive_overlay.png"
    assert "cannot be read as a video" in video.error


def test_equal_names_get_numbers() -> None:
    taken: set[str] = set()
    assert [free_stem(stem, taken) for stem in ("x", "X", "x-2", "x")] == ["x", "X-2", "x-2-2", "x-3"]


def test_names_are_numbered_before_anything_is_read() -> None:
    inputs = Inputs(images=("a/x.png", "b/X.jpg"), videos=("b/x.mp4",))
    assert list(result_stems(inputs, 0).values()) == ["x", "X-2", "x-3", "camera-0"]


def test_a_folder_with_results_of_these_names_is_numbered(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert free_folder(out, ["a", "b"]) == out
    for folder, file in ((out, "b_ids.png"), (tmp_path / "out-2", "a_overlay.mp4")):
        folder.mkdir()
        (folder / file).touch()
    assert free_folder(out, ["a", "b"]) == tmp_path / "out-3"
    assert free_folder(out, ["c"]) == out


def test_the_current_folder_is_numbered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "a_ids.png").touch()
    monkeypatch.chdir(here)
    assert free_folder(Path(), ["b"]) == Path()
    assert free_folder(Path(), ["a"]) == tmp_path / "here-2"


def test_progress_counts_the_images_and_the_tiles_of_each(tmp_path: Path) -> None:
    paths = [write_scene(tmp_path / "wide.png", 0, (16, 2 * MIN_SIDE)), write_scene(tmp_path / "small.png")]
    calls: list[tuple[str, int, int]] = []
    tiled = Predictor(ddsm_zoo.create_model("uper_ddsm_tiny", labels=CAMVID), tile=MIN_SIDE)
    predict_folder(tiled, paths, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert [call for call in calls if call[0] == "images"] == [("images", done, 2) for done in range(3)]
    tiles = [call[1:] for call in calls if call[0] == "tiles"]
    assert tiles[-1][0] == tiles[-1][1] > 1
    assert calls.index(("tiles", *tiles[-1])) < calls.index(("images", 1, 2))


def test_without_the_package_av_videos_end_before_anything_is_written(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    sources = [write_scene(tmp_path / "a.png"), tmp_path / "clip.mp4"]
    sources[1].touch()
    with raises(LookupError, kind="missing-package", name="av", expected="pip install 'ddsm-zoo[video]'"):
        predict_folder(predictor, sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
