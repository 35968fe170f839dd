"""Start-up time of imports and of the first prediction: ``python benchmarks/speed/startup.py [ROUNDS]``.

Each program starts ROUNDS times (5 unless given) in a process of its own, the programs taking turns, so that other work
on the machine affects all of them alike. Prints the medians of wall time, from start to end of the process, and of its
processor time. Bars: ``import ddsm_zoo`` with every public name takes at most 0.3 s more than ``import timm``;
``ddsm-zoo predict`` on the sample takes at most 1.5 times the script, which is what you would write without this
package's command: the same network and weights, no checks, no overlay.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ddsm_zoo
from benchmarks.processes import run_python

PACKAGE = Path(ddsm_zoo.__file__).parent
SAMPLE = PACKAGE / "data" / "sample" / "street.png"
SCRIPT = """
import sys
import numpy as np, timm, torch
from PIL import Image
from safetensors.torch import load_file
from ddsm_zoo.models.segmenter import Segmenter
from ddsm_zoo.zoo.registry import model_config
model = Segmenter(model_config("uper_ddsm_lite0_camvid"))
state = {name: tensor.float() for name, tensor in load_file(sys.argv[1]).items()}
model.load_state_dict(state, strict=False)
model.eval()
image = np.array(Image.open(sys.argv[2]).convert("RGB"))
images = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
images = torch.nn.functional.interpolate(images, (480, 640), mode="bilinear")
with torch.inference_mode():
    scores = model((images - 0.5) / 0.5)
scores = torch.nn.functional.interpolate(scores, image.shape[:2], mode="bilinear")
Image.fromarray(scores.argmax(1)[0].byte().numpy()).save(sys.argv[3])
"""


def programs(folder: Path) -> dict[str, list[str]]:
    """Return the words after Python's name of each program by its title."""
    python = ["-c"]
    weights = PACKAGE / "weights" / "uper_ddsm_lite0_camvid.safetensors"
    return {
        "python alone": [*python, ""],
        "`import timm`": [*python, "import timm"],
        "`import ddsm_zoo`": [*python, "import ddsm_zoo"],
        # Each name is imported on first use; this uses all of them
        "and every public name": [*python, "import ddsm_zoo; [getattr(ddsm_zoo, name) for name in ddsm_zoo.__all__]"],
        "a script that predicts": [*python, SCRIPT, str(weights), str(SAMPLE), str(folder / "mask.png")],
        "`ddsm-zoo predict`": ["-m", "ddsm_zoo", "predict", str(SAMPLE), "-o", str(folder / "predictions")],
    }


def measure(words: Sequence[str]) -> tuple[float, float]:
    """Run Python with these words and return its wall time and its processor time in seconds."""
    before, began = processor_time(), time.perf_counter()
    run_python(words, capture_output=True, check=True)
    return time.perf_counter() - began, processor_time() - before


def processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(rounds: int) -> None:
    """Print the table and the two ratios that have bars."""
    print("| Program | Wall (s) | Processor (s) |\n| --- | ---: | ---: |")
    medians = {}
    with tempfile.TemporaryDirectory() as name:
        taken: dict[str, list[tuple[float, float]]] = {}
        for turn in range(rounds + 1):
            folder = Path(name) / str(turn)
            folder.mkdir()
            for title, command in programs(folder).items():
                seconds = measure(command)
                if turn:  # the first fills the disk cache
                    taken.setdefault(title, []).append(seconds)
    for title, runs in taken.items():
        wall, processor = (statistics.median(values) for values in zip(*runs, strict=True))
        medians[title] = processor
        print(f"| {title} | {wall:.2f} | {processor:.2f} |")
    extra = medians["and every public name"] - medians["`import timm`"]
    ratio = medians["`ddsm-zoo predict`"] / medians["a script that predicts"]
    print(f"\nEvery public name after timm: {extra:.2f} s of processor time (bar 0.3).")
    print(f"`ddsm-zoo predict` / the script: {ratio:.2f} of processor time (bar 1.5).")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
