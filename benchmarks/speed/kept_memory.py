"""Processor time and peak memory with glibc's default for freed memory, and with the memory kept.

``python -m benchmarks.speed.kept_memory`` runs each work in processes of its own, in turns, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

import ddsm_zoo
from benchmarks.processes import run_python
from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.optimizer import create_optimizer
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.train_state import Objective
from ddsm_zoo.utils.allocator import keep_freed_memory
from ddsm_zoo.utils.pointwise import fast_pointwise

# Model, images (N, H, W), whether it is a training step, threads
WORKS = {
    "training step": ("uper_lite0", (8, 288, 384), True, 1),
    "large image": ("uper_ddsm_lite0", (1, 1024, 2048), False, 1),
    "small image": ("uper_ddsm_lite0", (1, 480, 640), False, 1),
    "ResNet-101": ("uper_ddsm_r101", (1, 1024, 1024), False, 2),
}


def main() -> int:
    """Print the table, or with ``--work`` the seconds and the peak memory of one work as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--turns", type=int, default=2, help="processes of each kind, 2 unless given")
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        if options.kept:
            keep_freed_memory()
        print(json.dumps(measure(options.work)))
        return 0
    print("| Work | Default (s) | Kept (s) | Ratio | Peak memory, default and kept (GB) |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for work in options.works:
        defaults, kept = zip(*((run(work), run(work, "--kept")) for _ in range(options.turns)), strict=True)
        seconds, peak = (statistics.median(values) for values in zip(*defaults, strict=True))
        seconds_kept, peak_kept = (statistics.median(values) for values in zip(*kept, strict=True))
        ratio = seconds_kept / seconds
        print(
            f"| {work} | {seconds:.2f} | {seconds_kept:.2f} | {ratio:.2f} | {peak:.2f}, {peak_kept:.2f} |", flush=True
        )
    return 0


def run(work: str, *words: str) -> tuple[float, float]:
    """Measure the work in a process of its own."""
    command = ["-m", "benchmarks.speed.kept_memory", "--work", work, *words]
    ran = run_python(command, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(ran.stdout.splitlines()[-1])
    return seconds, peak


def measure(work: str) -> tuple[float, float]:
    """Return the median processor time in seconds of five calls after a first one, and the peak memory in GB."""
    name, (count, height, width), trains, threads = WORKS[work]
    torch.set_num_threads(threads)
    images = torch.rand(count, 3, height, width).contiguous(memory_format=torch.channels_last)
    call = training_step(name, images) if trains else prediction(name, images)
    seconds = []
    for _ in range(6):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def training_step(name: str, images: torch.Tensor) -> Callable[[], None]:
    """Return a training step of the recipe ``evidence_camvid``."""
    recipe = Recipe.load("evidence_camvid")
    model = ddsm_zoo.create_model(name, num_classes=11).train().to(memory_format=torch.channels_last)
    optimizer = create_optimizer(model, recipe)
    objective = Objective(model, create_loss(recipe, 11, 255), 0.0)
    targets = torch.randint(11, (len(images), *images.shape[2:]))

    def step() -> None:
        with fast_pointwise(model, images):
            torch.autograd.backward(objective(images, targets))
        optimizer.step()
        optimizer.zero_grad()

    return step


def prediction(name: str, images: torch.Tensor) -> Callable[[], None]:
    """Return a forward pass of the fused model."""
    model = ddsm_zoo.create_model(name, num_classes=11).to(memory_format=torch.channels_last).eval().fuse()

    @torch.inference_mode()
    def predict() -> None:
        with fast_pointwise(model, images):
            model(images)

    return predict


if __name__ == "__main__":
    sys.exit(main())
