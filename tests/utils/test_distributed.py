"""Two real processes that share a set must give what one gives, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.together import run_together

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json
import torch
from accelerate import Accelerator

from ddsm_zoo.evaluation.accumulate import evaluate_model

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
masks = [torch.randint(0, 4, size, generator=generator) for size in [(6, 8)] * 4 + [(5, 9)]]
masks = [mask.where(mask < 3, 255) for mask in masks]
images = [torch.randn(3, *mask.shape, generator=generator) for mask in masks]


def scores():
    per_image = evaluate_model(lambda image: image, list(zip(images, masks)), 3, 255, boundary=True, batch_size=2)
    counts = {name: values.tolist() for name, values in per_image.counts.items()}
    return {**per_image.figures(), "matrix": per_image.confusion.matrix.tolist(), "counts": counts}


alone = scores()
accelerator = Accelerator(cpu=True)
together = scores()
assert accelerator.num_processes == 2
torch.distributed.destroy_process_group()
print(json.dumps({"alone": alone, "together": together}))
"""


def test_processes_of_accelerate_count_as_one() -> None:
    for output in run_together(["-c", PROGRAM], ROOT):
        said = json.loads(output.splitlines()[-1])
        assert said["together"]["count"] == 5
        assert said["together"] == said["alone"]
