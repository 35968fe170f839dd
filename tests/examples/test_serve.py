"""The server answers like the predictor in it, and refuses what is no image."""

from __future__ import annotations

import importlib.util
import io
from types import ModuleType

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.support.pages import ROOT


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client(serve: ModuleType) -> TestClient:
    return TestClient(serve.app)


def encoded(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.fixture(scope="module")
def street() -> Image.Image:
    return Image.open(ROOT / "ddsm_zoo/data/sample/street.png").convert("RGB").resize((96, 64))


def test_mask_is_the_predictors(serve: ModuleType, client: TestClient, street: Image.Image) -> None:
    answer = client.post("/mask", content=encoded(street, "png"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    mask = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(mask, serve.predictor(street).mask)


def test_shares_have_every_class_and_sum_to_one(client: TestClient, street: Image.Image) -> None:
    shares = client.post("/shares", content=encoded(street, "png")).json()
    assert list(shares) == client.get("/labels").json()
    assert sum(shares.values()) == pytest.approx(1)


def test_a_photo_is_turned_upright(client: TestClient, street: Image.Image) -> None:
    answer = client.post("/mask", content=encoded(street, "jpeg", orientation=6))  # stored on its side
    assert Image.open(io.BytesIO(answer.content)).size == (64, 96)


@pytest.mark.parametrize("body", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(client: TestClient, body: bytes) -> None:
    assert client.post("/mask", content=body).status_code == 415


def test_what_is_too_large_is_refused(client: TestClient, serve: ModuleType) -> None:
    wide = Image.new("1", (serve.MAX_PIXELS // 1000 + 1, 1000))
    assert client.post("/mask", content=encoded(wide, "png")).status_code == 413
    assert client.post("/mask", content=bytes(serve.MAX_BYTES + 1)).status_code == 413


def test_what_is_too_large_for_pillow_is_too_large(client: TestClient) -> None:
    assert client.post("/mask", content=encoded(Image.new("1", (20000, 20000)), "png")).status_code == 413


def test_a_form_is_refused_with_the_way_to_send_an_image(client: TestClient, street: Image.Image) -> None:
    answer = client.post("/mask", files={"file": encoded(street, "png")})
    assert answer.status_code == 415
    assert "--data-binary" in answer.json()["detail"]


def test_16_bits_are_scaled_and_not_clipped(client: TestClient, street: Image.Image) -> None:
    gray = street.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    answers = [client.post("/mask", content=encoded(image, "png")).content for image in (gray, deep)]
    assert answers[0] == answers[1]
