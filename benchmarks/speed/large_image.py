"""The memory and the time in which a large picture is labeled by tiles.

    python benchmarks/speed/large_image.py FOLDER [--size 20000 10000] [--memory 4GiB]

Sets the pictures of a folder, each enlarged to 1200 x 900, side by side to one of that width and height, has
`ddsm-zoo predict --tile auto` label it, and prints the most that its process held, the time and the number of cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.processes import run_python

PATCH = (1200, 900)


def mosaic(folder: Path, size: tuple[int, int]) -> Image.Image:
    """Every ninth picture of the folder, which of a video are different ones, over and over."""
    paths = sorted(folder.glob("*.png"))[::9]
    if not paths:
        raise SystemExit(f"{folder} has no .png file, expected some to fill the picture with")
    patches = [Image.open(path).convert("RGB").resize(PATCH, Image.Resampling.BICUBIC) for path in paths]
    picture = Image.new("RGB", size)
    corners = itertools.product(range(0, size[1], PATCH[1]), range(0, size[0], PATCH[0]))
    for patch, (y, x) in zip(itertools.cycle(patches), corners):
        picture.paste(patch, (x, y))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of .png files")
    parser.add_argument("--size", nargs=2, type=int, default=(20_000, 10_000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--memory", default="4GiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "large.jpg"
        mosaic(options.folder, tuple(options.size)).save(path, quality=88)
        command = ["-m", "ddsm_zoo", "predict", str(path), "-o", temporary]
        began = time.perf_counter()
        run_python([*command, "--tile", "auto", "--memory", options.memory], check=True)
        seconds = time.perf_counter() - began
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # not below what this process held when it began the other one, 0.8 GiB for the picture of 20,000 x 10,000
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{most / 2**30:.2f} GiB at most, {seconds / 60:.1f} minutes, {cores} cores")


if __name__ == "__main__":
    main()
