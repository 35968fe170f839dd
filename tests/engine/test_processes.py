"""Two real processes that share a set must give what one gives, to the bit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
import torch
from accelerate import Accelerator

from ddsm_zoo.engine.evaluate import evaluate_model
from ddsm_zoo.engine.processes import joined

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
masks = [torch.randint(0, 4, size, generator=generator) for size in [(6, 8)] * 4 + [(5, 9)]]
masks = [mask.where(mask < 3, 255) for mask in masks]
images = [torch.randn(3, *mask.shape, generator=generator) for mask in masks]


def scores():
    tally = evaluate_model(lambda image: image, list(zip(images, masks)), 3, 255, boundary=True, batch_size=2)
    counts = {name: values.tolist() for name, values in tally.counts.items()}
    return {**tally.figures(), "matrix": tally.confusion.matrix.tolist(), "counts": counts}


alone = scores()
if sys.argv[1] == "accelerate":
    accelerator = Accelerator(cpu=True)
    reporting, together = accelerator.is_main_process, scores()
    assert accelerator.num_processes == 2
    torch.distributed.destroy_process_group()
else:
    with joined() as reporting:
        assert torch.distributed.get_world_size() == 2
        together = scores()
print(json.dumps({"reporting": reporting, "alone": alone, "together": together}))
"""


@pytest.mark.parametrize("start", ["accelerate", "launched"])
def test_two_processes_count_as_one(start: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, start],
            cwd=ROOT,
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ended = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    said = [json.loads(output.splitlines()[-1]) for output, _ in ended]
    assert [each["reporting"] for each in said] == [True, False]
    for each in said:
        assert each["together"]["count"] == 5
        assert each["together"] == each["alone"]
