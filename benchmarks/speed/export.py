"""How models agree with themselves, compiled and exported for images of any size: the figures of docs/export.md.

    python benchmarks/speed/export.py                             every family, on a tiny backbone
    python benchmarks/speed/export.py uper_ddsm_r50 uper_ddsm_r101
    python benchmarks/speed/export.py --backend inductor uper_ddsm_tiny

The models are freshly made, but no weight keeps its initial value. Each is compiled by ``torch.compile(fullgraph=True,
dynamic=True)`` and, once for all sizes, exported by ``torch.export`` (strict) and written as ONNX. Ends with status 1
where one does not agree as exported files must. What is compiled is the captured graph; with the backend inductor also
the code made from it, which takes minutes for each model.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

import torch

from ddsm_zoo.export.export import CHECKED_SIZES, SAME_CLASS, TOLERANCE, TRACED
from ddsm_zoo.export.onnx import open_onnx, write_onnx
from ddsm_zoo.export.program import Run, compare, open_torch, trace, write_torch
from ddsm_zoo.models import Segmenter
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.registry import list_models


def trained(name: str) -> Segmenter:
    torch.manual_seed(0)
    model = create_model(name, num_classes=19)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        model.train()(torch.randn(2, 3, 128, 128))  # statistics of what the layers see
    return model.fuse()


def compiled(model: Segmenter, backend: str) -> Run:
    """One graph without breaks; the backend "eager" makes no code of it."""
    run: Run = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    return run


def agrees(name: str, kind: str, model: Segmenter, run: Run) -> bool:
    """Print the largest difference of two logits and the least share of pixels with the same class."""
    rows = []
    for size in CHECKED_SIZES:
        with torch.inference_mode():
            image = torch.randn(1, 3, *size)
            rows.append(compare(size, [(model(image), run(image))]))
    worst, same = max(row.difference or 0.0 for row in rows), min(row.argmax for row in rows)
    print(f"{name} {kind}: {worst:.2g}, {100 * same:.3f} %", flush=True)
    return all((row.difference or 0.0) <= TOLERANCE and row.argmax >= SAME_CLASS for row in rows)


def main(names: list[str], backend: str) -> None:
    agreed = []
    for name in names:
        model = trained(name)
        agreed.append(agrees(name, "compiled", model, compiled(model, backend)))
        start = time.perf_counter()
        program = trace(model, torch.rand(1, 3, *TRACED), {2: "height", 3: "width"})
        print(f"{name}: traced in {time.perf_counter() - start:.0f} s", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            write_torch(program, Path(folder) / "model.pt2", {})
            agreed.append(agrees(name, "torch", model, open_torch(Path(folder) / "model.pt2")))
            write_onnx(program, Path(folder) / "model.onnx", "logits", {})
            agreed.append(agrees(name, "onnx", model, open_onnx(Path(folder) / "model.onnx")))
        del model, program
        torch._dynamo.reset()
        gc.collect()
    if not all(agreed):
        sys.exit("not all agree")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="every family on a tiny backbone unless given")
    parser.add_argument("--backend", choices=("eager", "inductor"), default="eager")
    options = parser.parse_args()
    main(options.names or list_models("*_tiny"), options.backend)
