"""Measure how many images a minute `ddsm-zoo check-data` and the check before training get through on one core.

    python benchmarks/speed/check_data.py

The data are rendered scenes as PNG, in CamVid's layout and at the sizes of CamVid and of Cityscapes. Time is that of
the clock on the wall, the shortest of three runs on one thread; the first leaves the files in memory, so that decoding
is measured and not the disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddsm_zoo.data.check.report import check_data
from ddsm_zoo.data.scenes.render import render_scene

SIZES = ((360, 480), (1024, 2048))


def write_scenes(root: Path, size: tuple[int, int], count: int) -> None:
    """Half of the scenes as the split train, the others as val; void is 11, as CamVid's masks have it."""
    for index in range(count):
        split = "train" if index < count / 2 else "val"
        image, mask = render_scene(index, size)
        for folder, pixels in ((split, image), (f"{split}annot", np.where(mask == 255, 11, mask).astype(np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{index}.png")


def images_per_minute(root: Path, count: int, *, quick: bool) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        report = check_data(f"camvid:{root}", quick=quick)
        seconds.append(time.perf_counter() - start)
        if report.errors:
            raise ValueError(f"rendered scenes have no errors, found: {report.errors[0]}")
    return 60 * count / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="images of each size")
    count = parser.parse_args().count
    torch.set_num_threads(1)
    print(f"{'images a minute':>16} {'check-data':>12} {'before training':>16}")
    for height, width in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_scenes(root, (height, width), count)
            full, quick = (images_per_minute(root, count, quick=quick) for quick in (False, True))
        print(f"{f'{width} x {height}':>16} {full:>12.0f} {quick:>16.0f}")


if __name__ == "__main__":
    main()
