"""Write the picture of the page that docs/demo.md shows: python -m tests.support.demo_picture FILE."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

import ddsm_zoo
from ddsm_zoo.utils.files import atomic_path
from tests.support.chromium import chromium, click_pixel, demo, opened, upload

STREET = Path(ddsm_zoo.__file__).parent / "data" / "sample" / "street.png"


def main(target: Path) -> None:
    with demo() as address, chromium() as browser:
        page = opened(browser, address)
        upload(page, STREET)
        click_pixel(page, (166, 205))
        screen = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    small = screen.resize((960, 600), Image.Resampling.LANCZOS)  # all colors: fewer would merge those of two classes
    with atomic_path(target) as temporary:
        small.save(temporary, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
