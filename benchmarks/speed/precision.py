"""Suite ``precision``: bfloat16 beside float32 on the images of a data set."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.figures import DTYPES, Bar, Figures, SuiteProgress, chosen_device, timing
from benchmarks.speed.measure import environment, interleave
from benchmarks.speed.networks import lay_out
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.transforms import EvalTransform
from ddsm_zoo.zoo.factory import create_trained, resolve_data_config

FULL, HALF = "fp32", "bf16"
SPEED, AGREEMENT = 1.5, 0.995
NO_UNIT = "this processor has no instructions for bfloat16 (AVX512-BF16, AMX, Arm's BF16) and torch sees no GPU"


def benchmark_precision(
    model_name: str, data: str, *, split: str = "val", progress: SuiteProgress | None = None
) -> Figures:
    """Seconds per image in float32 and in bfloat16, and the share of all pixels that get the same class from both.

    The images are those of a split of ``camvid:ROOT``, ``folder:ROOT``, ..., one at a time and in turns; void pixels
    count too. Raises DatasetError and what `create_trained` raises.
    """
    dataset = open_dataset(data, split)  # the data first: it is checked sooner than a model is loaded
    model = create_trained(model_name).fuse()
    dataset.transform = EvalTransform(resolve_data_config(model))
    models: dict[str, nn.Module] = {FULL: model, HALF: copy.deepcopy(model)}  # folded before it is rounded
    seconds: dict[str, list[float]] = {FULL: [], HALF: []}
    pixels, agreeing = 0, 0
    for index in range(len(dataset)):
        image = dataset[index][0][None].to(chosen_device())
        laid = {name: lay_out(model, image.to(DTYPES[name]), torch.channels_last) for name, model in models.items()}
        masks: dict[str, Tensor] = {}
        calls = {name: functools.partial(_label, model, laid[name], name, masks) for name, model in models.items()}
        for name, taken in interleave(calls, 1, warmup=0 if index else 1).items():
            seconds[name] += taken
        pixels += masks[FULL].numel()
        agreeing += int((masks[FULL] == masks[HALF]).sum())
        if progress:
            progress(f"{FULL} and {HALF}", index + 1, len(dataset))
    rows: list[dict[str, Any]] = [
        {"model": model_name, "dtype": name, "batch": 1, "compiled": "no", "images": len(dataset), **timing(taken)}
        for name, taken in seconds.items()
    ]
    for row in rows:
        row["ratio"] = rows[0]["median"] / row["median"]
    rows[-1]["agreement"] = agreeing / pixels
    where = environment()
    unmeasured = None if where["gpu"] or where["bf16"] else NO_UNIT
    bars = [
        Bar(
            name=f"{HALF}, times faster", value=rows[-1]["ratio"], sense="at least", bound=SPEED, unmeasured=unmeasured
        ),
        Bar(name=f"{HALF}, agreement of classes", value=agreeing / pixels, sense="at least", bound=AGREEMENT),
    ]
    return Figures(suite="precision", rows=rows, bars=bars, environment=where)


@torch.inference_mode()
def _label(model: nn.Module, image: Tensor, name: str, masks: dict[str, Tensor]) -> None:
    """Put the classes (1, H, W) that the model sees in ``image`` into ``masks``."""
    logits: Tensor = model(image)
    masks[name] = logits.argmax(1)
