"""What the demo shows, and where it listens; tests/browser looks at the page itself."""

from __future__ import annotations

import html
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ddsm_zoo
from ddsm_zoo import Predictor, Segmentation
from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.demo.page import BLUE, GRAY, PANEL, SAMPLE, SIDE, View, address, draw_samples, listen, look, offered
from ddsm_zoo.explain.explain import Level, explain
from ddsm_zoo.labels import CAMVID, LabelSpace
from ddsm_zoo.zoo.registry import UnknownModelError
from tests.support.errors import raises

BUNDLED = "uper_ddsm_lite0_camvid"
WHITE = Image.new("RGB", (200, 100), (255, 255, 255))


@pytest.fixture(scope="module")
def predictors() -> dict[str, Predictor]:
    torch.manual_seed(0)
    names = ("uper_ddsm_tiny", "uper_tiny")
    return {name: Predictor(ddsm_zoo.create_model(name, labels=CAMVID)) for name in names}


@pytest.fixture
def street(tmp_path: Path) -> Path:
    Image.fromarray(render_scene(3, (96, 128))[0]).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def level(positions: list[tuple[float, float]], affinities: list[float], center: tuple[float, float]) -> Level:
    features = np.zeros((1, 1, 1), np.float32)
    return Level(
        stage=2,
        pitch=2.0,
        center=center,
        positions=np.asarray(positions, np.float32),
        affinities=np.asarray(affinities, np.float32),
        modulations=np.ones(len(positions), np.float32),
        high=features,
        low=features,
        spatial=features,
        both=None,
    )


def test_a_pixel_is_shown_as_the_library_explains_it(predictors: dict[str, Predictor], street: Path) -> None:
    predictor = predictors["uper_ddsm_tiny"]
    view = look(predictor, street, (70, 40))
    expected = explain(predictor, street, (70, 40))
    assert np.array_equal(view.result.mask, predictor(street).mask)
    assert view.samples().count("<figure>") == len(expected.levels) == 3
    assert f"Pixel 70,40: {expected.label}" in view.samples()
    picture, overlay = view.picture(), predictor(street).overlay(legend=False)
    assert picture.size == (8 * 128, 8 * 96)
    assert picture.getpixel((8 * 70 + 4, 8 * 40 + 4)) == BLUE
    assert np.array_equal(np.asarray(picture)[8 * 60 :: 8, ::8], np.asarray(overlay)[60:])
    assert np.array_equal(np.asarray(look(predictor, street).picture())[7::8, 7::8], np.asarray(overlay))


def test_a_model_that_samples_nothing_has_classes_and_says_so(predictors: dict[str, Predictor], street: Path) -> None:
    predictor = predictors["uper_tiny"]
    view = look(predictor, street, (70, 40))
    assert np.array_equal(view.result.mask, predictor(street).mask)
    assert "samples no pixels" in view.samples()
    assert "<figure>" not in view.samples()


def test_a_large_picture_is_reduced_and_the_caption_says_so(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    Image.new("RGB", (2 * SIDE, 40), (90, 90, 90)).save(tmp_path / "wide.png")
    view = look(predictors["uper_ddsm_tiny"], tmp_path / "wide.png", (SIDE - 1, 19))
    assert view.picture().size == view.result.mask.shape[::-1] == (SIDE, 20)
    assert "wide.png: 3200 x 40 pixels, labeled at 1600 x 20 pixels" in view.caption()
    assert view.explanation is not None


@pytest.mark.parametrize("content", [b"", b"no picture", SAMPLE.read_bytes()[:9000]])
def test_what_is_no_picture_is_named_without_its_folder(
    predictors: dict[str, Predictor], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "notes.png").write_bytes(content)
    with raises(ImageError, name="notes.png"):
        look(predictors["uper_tiny"], tmp_path / "notes.png")


def test_a_picture_that_would_fill_the_memory_is_refused(
    predictors: dict[str, Predictor], street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with raises(ImageError, kind="image-too-large", name="street.png"):
        look(predictors["uper_tiny"], street)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_the_legend_has_each_class_with_its_share(ids: list[int]) -> None:
    labels = LabelSpace.from_names(("road", "sky & cloud", "<b>tree</b>", "car"))
    mask = np.asarray([ids], np.uint8)
    image = Image.new("RGB", (len(ids), 1))
    view = View(name="a.png", size=image.size, result=Segmentation(mask=mask, labels=labels, image=image))
    rows = re.findall(r"background: rgb(\(.*?\)).*?</td><td>(.*?)</td>.*?<td>([\d.]+)%</td>", view.classes())
    found = [(color, html.unescape(name), float(share)) for color, name, share in rows]
    assert view.classes().count("<tr>") == len(found) == len(set(ids))
    assert [share for _, _, share in found] == sorted((share for _, _, share in found), reverse=True)
    for color, name, share in found:
        index = labels.names.index(name)
        assert color == str(labels.palette[index])
        assert share == pytest.approx(100 * ids.count(index) / len(ids), abs=0.051)
    assert "<b>tree" not in view.classes()


def test_names_of_files_are_text() -> None:
    result = Segmentation(mask=np.zeros((1, 1), np.uint8), labels=CAMVID, image=Image.new("RGB", (1, 1)))
    view = View(name="<script>.png", size=(1, 1), result=result, note="<script>")
    assert "<script>" not in view.caption() + view.samples()
    assert html.unescape(view.caption()).startswith("<p><script>.png: 1 x 1 pixels")


def test_samples_are_drawn_where_they_are() -> None:
    """The farthest, 20 pixels away, is at four fifths of the panel's half width: 12.8 pixels of it for each."""
    panel = np.asarray(draw_samples(WHITE, level([(70, 50), (50, 45)], [0.0, 0.0], (50, 50)))).astype(int)
    assert panel.shape == (PANEL[1], PANEL[0], 3)
    redness = panel[..., 0] - panel[..., 2]
    rows, columns = np.nonzero(redness > 100)
    far = columns > 448
    assert (columns[far].mean(), rows[far].mean()) == pytest.approx((320 + 20 * 12.8, 200), abs=1)
    assert (columns[~far].mean(), rows[~far].mean()) == pytest.approx((320, 200 - 5 * 12.8), abs=1)
    blueness = panel[..., 2] - panel[..., 0]
    rows, columns = np.nonzero(blueness > 100)  # the cell, 2 pixels a side, and the cross in it
    assert (columns.min(), columns.max()) == pytest.approx((320 - 12.8, 320 + 12.8), abs=2)
    assert (rows.min(), rows.max()) == pytest.approx((200 - 12.8, 200 + 12.8), abs=2)


def test_the_area_of_a_disc_is_the_affinity_and_the_outside_is_gray() -> None:
    """Along the row of the center, to the left of each cross, where nothing else is drawn."""
    panel = np.asarray(draw_samples(WHITE, level([(30, 0), (-30, 0)], [0.64, 0.16], (0, 0)))).astype(int)
    tinted = np.flatnonzero(panel[200, :, 0] - panel[200, :, 1] > 40)
    left, right = 64, 576
    radius_left, radius_right = left - tinted.min(), right - tinted[tinted > 400].min()
    assert radius_right / radius_left == pytest.approx(2, abs=0.1)
    assert np.abs(panel[20, 20] - np.asarray(GRAY)).max() <= 10, "above and left of the image"
    assert panel[380, 620].min() == 255, "inside the image"


def test_models_that_need_no_network_come_first() -> None:
    given_names = ["hf-hub:somebody/model", "local-dir:runs/mine"]
    assert offered(given_names) == ["local-dir:runs/mine", BUNDLED, "hf-hub:somebody/model"]
    assert offered([]) == ddsm_zoo.list_pretrained()
    assert offered([BUNDLED, BUNDLED]) == [BUNDLED]
    with raises(UnknownModelError, kind="unknown-model", name="uper_dsm_r50"):
        offered(["uper_dsm_r50"])


def test_listening() -> None:
    with listen("127.0.0.1", 0) as listener:
        url = address(listener)
        host, port = re.fullmatch(r"http://(127\.0\.0\.1):(\d+)", url).groups()
        socket.create_connection((host, int(port)), timeout=10).close()
        with raises(OSError, kind="port", got=int(port)):
            listen(host, int(port))
