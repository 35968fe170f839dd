"""The page of ``ddsm-zoo demo`` as somebody in front of a browser has it: everything here goes through the screen."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page

import ddsm_zoo
from ddsm_zoo.explain.explain import explain
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.utils.visualize import contrast
from tests.support.chromium import chromium, click_pixel, demo, opened, place, settle, upload

SAMPLE = Path(ddsm_zoo.__file__).parent / "data" / "sample"
STREET = SAMPLE / "street.png"
BUNDLED = "uper_ddsm_lite0_camvid"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a model with random weights that samples nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("plain")
    ddsm_zoo.save_pretrained(ddsm_zoo.create_model("uper_tiny", labels=CAMVID), folder)
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def internet() -> Iterator[socket.socket]:
    """A socket that stands for the rest of the world: whatever asks for another host comes here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        yield listener


@pytest.fixture(scope="module")
def address(plain: str, internet: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("temporary")
    proxy = f"http://127.0.0.1:{internet.getsockname()[1]}"
    proxies = {name: proxy for kind in ("HTTP", "HTTPS", "ALL") for name in (f"{kind}_PROXY", f"{kind}_PROXY".lower())}
    with demo("-m", BUNDLED, "-m", plain, TMPDIR=str(folder), NO_PROXY="127.0.0.1", **proxies) as url:
        yield url
    assert not list(folder.glob("ddsm-zoo-demo-*")), "pictures of visitors outlive the demo"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    page = opened(browser, address)
    yield page
    page.close()


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Path:
    """A folder in pytest's cache, where the pictures of the last run can be looked at."""
    return Path(request.config.cache.mkdir("screenshots"))


def screen(page: Page, path: Path) -> np.ndarray:
    content = page.screenshot(path=path, animations="disabled")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)


def around(pixels: np.ndarray, x: float, y: float, reach: int = 3) -> np.ndarray:
    """The mean color of a small square."""
    row, column = round(y), round(x)
    return pixels[row - reach : row + reach + 1, column - reach : column + reach + 1].mean((0, 1))


def inside(mask: np.ndarray, name: str) -> tuple[int, int]:
    """A pixel (x, y) in whose neighborhood of 31 x 31 everything is of that class."""
    of_class = mask == CAMVID.names.index(name)
    for y in range(15, mask.shape[0] - 15, 5):
        for x in range(15, mask.shape[1] - 15, 5):
            if of_class[y - 15 : y + 16, x - 15 : x + 16].all():
                return x, y
    raise AssertionError(f"no large surface of {name}")


def test_a_street_from_the_picture_to_what_is_sampled(page: Page, plain: str, screenshots: Path) -> None:
    upload(page, STREET)
    pixels = screen(page, screenshots / "labeled.png")
    image = np.asarray(Image.open(STREET).convert("RGB")).astype(float)
    mask = np.asarray(Image.open(SAMPLE / "street_mask.png"))
    for name in ("Road", "Sky"):
        x, y = inside(mask, name)
        color = np.asarray(contrast(CAMVID).palette[CAMVID.names.index(name)])
        blend = (around(image, x, y) + color) / 2
        assert np.abs(around(pixels, *place(page, (x, y))) - blend).max() < 12, name
    rows = page.locator("#classes tr").all_inner_texts()
    assert rows[0].split()[0] == "Road"
    assert sum(float(row.split()[-1].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.6)

    rider = (166, 205)
    click_pixel(page, rider)
    expected = explain(BUNDLED, STREET, rider)
    assert page.get_by_role("heading", name="Pixel ").inner_text() == f"Pixel 166,205: {expected.label}"
    assert page.locator("#samples figcaption").all_inner_texts() == [
        f"x̃{level.stage}: {len(level.positions)} positions, cells of {level.pitch:.4g} pixels"
        for level in expected.levels
    ]
    pixels = screen(page, screenshots / "explained.png")
    red, _, blue = around(pixels, *place(page, rider), reach=0)
    assert blue > red + 100, "no cross on the pixel"
    panel = page.locator("#samples img").first.bounding_box()
    assert panel is not None
    shown = pixels[round(panel["y"]) :, round(panel["x"]) :][: round(panel["height"]), : round(panel["width"])]
    redness = shown[..., 0] - shown[..., 1:].max(-1)
    assert (redness > 100).mean() > 0.003, "no sampled positions in the panel"

    page.locator("#model input").click()
    page.get_by_role("option", name=plain).click()
    page.get_by_text("which samples no pixels").wait_for()
    settle(page)
    assert page.locator("#samples figure").count() == 0
    assert page.locator("#classes tr").all_inner_texts() != rows
    screen(page, screenshots / "other-model.png")


def test_what_is_no_picture_is_said_in_one_line_and_harms_nothing(page: Page, tmp_path: Path) -> None:
    for name, content, message in (
        ("notes.txt", b"no picture at all", "notes.txt is no image, expected one of BMP, GIF, JPEG, PNG"),
        ("half.png", STREET.read_bytes()[:5000], "half.png is truncated or damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file input[type=file]", tmp_path / name)
        page.get_by_text(message).wait_for()
        assert page.locator("#caption").inner_text().startswith(name), "the folder on the server is nobody's business"
        assert page.locator("#picture img").count() == 0
        page.get_by_label("Clear").first.click()
        page.get_by_text("Drop an image on the left").wait_for()
    upload(page, STREET)
    assert page.locator("#classes tr").count() > 5


def test_streets_for_those_without_a_picture(page: Page) -> None:
    page.get_by_role("button", name="Sample street").click()
    page.get_by_text("street.png: 480 x 360 pixels").wait_for()
    page.get_by_role("button", name="Render a street").click()
    page.locator("#caption", has_text="scene-").wait_for()
    settle(page)
    assert page.locator("#classes tr").count() > 3


def test_two_visitors_at_once(browser: Browser, address: str, tmp_path: Path) -> None:
    Image.open(STREET).transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((0, 0, 300, 360)).save(tmp_path / "mine.png")
    pages = [opened(browser, address), opened(browser, address)]
    for page, path in zip(pages, (STREET, tmp_path / "mine.png"), strict=True):
        page.set_input_files("#file input[type=file]", path)
    pages[0].get_by_text("street.png: 480 x 360 pixels").wait_for()
    pages[1].get_by_text("mine.png: 300 x 360 pixels").wait_for()
    shares = [page.locator("#classes tr").all_inner_texts() for page in pages]
    assert all(shares)
    assert shares[0] != shares[1]
    for page in pages:
        page.close()


def test_nothing_is_asked_of_another_server(browser: Browser, address: str, internet: socket.socket) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    response = page.goto(address)
    assert response is not None
    upload(page, STREET)
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))] == []
    assert "default-src 'self'" in response.headers["content-security-policy"]
    elsewhere = f"http://127.0.0.1:{internet.getsockname()[1]}/"  # another port is another server
    page.evaluate(f"fetch('{elsewhere}').catch(() => document.title = 'refused')")
    page.wait_for_function("document.title == 'refused'")
    with pytest.raises(TimeoutError):
        internet.accept()
    page.close()
