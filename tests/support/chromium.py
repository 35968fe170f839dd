"""The demo as a process of its own, and a headless Chromium that looks at it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

VIEW = {"width": 1280, "height": 800}
PATIENCE = 120_000  # milliseconds, on a machine that may be busy
# A sandbox needs rights that root in a container lacks, and the rest would ask servers of the maker
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def demo(*arguments: str, **environment: str) -> Iterator[str]:
    """The address of `ddsm-zoo demo ARGUMENTS` at a free port, which Ctrl-C must end in good order."""
    command = [sys.executable, "-m", "ddsm_zoo", "demo", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), f"the demo ended with {process.poll()} and said {line!r}"
        yield line.split()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine, without a window."""
    executable = shutil.which("chromium")
    assert executable is not None, "no chromium on the PATH, install it (Debian: apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, address: str) -> Page:
    """The page, ready for a picture."""
    page = browser.new_page(viewport=VIEW, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("#file input[type=file]").wait_for(state="attached")
    return page


def upload(page: Page, path: Path) -> None:
    """Hand a picture to the page and wait for its classes."""
    page.set_input_files("#file input[type=file]", path)
    page.get_by_text(f"{path.name}: ").wait_for()
    settle(page)


def click_pixel(page: Page, pixel: tuple[int, int]) -> None:
    """Click a pixel (x, y) of the picture and wait for what is said about it."""
    page.mouse.click(*place(page, pixel))
    page.get_by_role("heading", name="Pixel ").wait_for()
    settle(page)


def place(page: Page, pixel: tuple[int, int]) -> tuple[float, float]:
    """Where the middle of a pixel (x, y) of the picture, as it was labeled, is on the page."""
    image = page.locator("#picture img")
    box = image.bounding_box()
    assert box is not None
    width, height = map(int, re.findall(r"(\d+) x (\d+) pixels", page.locator("#caption").inner_text())[-1])
    scale = min(box["width"] / width, box["height"] / height)  # the picture is fitted into its box
    left, top = box["x"] + (box["width"] - scale * width) / 2, box["y"] + (box["height"] - scale * height) / 2
    return left + (pixel[0] + 0.5) * scale, top + (pixel[1] + 0.5) * scale


def settle(page: Page) -> None:
    """Wait until the picture is drawn and nothing is under way."""
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
    page.wait_for_function("!document.querySelector('.generating, .progress-text, .eta-bar')")
