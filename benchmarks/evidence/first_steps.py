"""How a model's start decides its first steps: ``python -m benchmarks.evidence.first_steps camvid:ROOT``.

Prints what the softmax of each affinity starts from. Then trains `uper_ddsm_lite0` for 50 steps on the first 8 training
images, the same batches for every variant of its start or of its module, and prints the loss of the last 10 steps with
the median norm of the whole gradient. These are the figures of docs/method.md; one seed and a minute a variant, so they
tell what trains, not what scores.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn

import ddsm_zoo
from benchmarks.evidence.fusions import unscale
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.transforms import EvalTransform
from ddsm_zoo.layers import affinity
from ddsm_zoo.layers.affinity import ChannelAffinity, SpatialAffinity
from ddsm_zoo.layers.common import BatchNorm2d
from ddsm_zoo.models import Segmenter
from ddsm_zoo.ops import sampled_attention
from ddsm_zoo.ops.reference import sample
from ddsm_zoo.training.losses import SegmentationLoss

STEPS = 50
IMAGES = 8
BATCH = 4
CROP = (256, 320)


def as_it_is(_: Segmenter) -> None:
    """The model of the zoo."""


def small_logits(model: Segmenter) -> None:
    """The classifier of FCN and its heirs: standard deviation 0.01."""
    nn.init.normal_(model.classifier.weight, std=0.01)


def unscaled(model: Segmenter) -> None:
    """Eq. 3 as it is written, without our 1 / a."""
    for module in model.modules():
        if isinstance(module, ChannelAffinity):
            unscale(module)


def normalized(model: Segmenter) -> None:
    """Batch normalization after S and K."""
    for module in model.modules():
        if isinstance(module, (ChannelAffinity, SpatialAffinity)):
            norm = BatchNorm2d(module.out.out_channels)
            module.register_module("out", nn.Sequential(module.out, norm))


VARIANTS: dict[str, tuple[str, Callable[[Segmenter], None]]] = {
    "the zoo's": ("uper_ddsm_lite0", as_it_is),
    "classifier at 0.01": ("uper_ddsm_lite0", small_logits),
    "Eq. 3 unscaled": ("uper_ddsm_lite0", unscaled),
    "batch normalization after S and K": ("uper_ddsm_lite0", normalized),
    "plain `uper_lite0`": ("uper_lite0", as_it_is),
    "plain, classifier at 0.01": ("uper_lite0", small_logits),
}


def starts(data: str) -> list[tuple[str, float, float]]:
    """Of a fresh model's logits over the taps: their standard deviation, and the largest affinity, on average."""
    torch.manual_seed(0)
    model = ddsm_zoo.create_model("uper_ddsm_lite0", pretrained_backbone=True).train()  # normalized by the batch
    samples = open_dataset(data, "train", EvalTransform(ddsm_zoo.resolve_data_config(model)))
    (pool,) = {module.pool for module in model.modules() if isinstance(module, ChannelAffinity)}
    (grid,) = {module.grid for module in model.modules() if isinstance(module, ChannelAffinity)}
    found: dict[str, list[Tensor]] = {"Eq. 2": [], "Eq. 3, divided by a": [], "Eq. 3 as written": []}

    def watched(query: Tensor, key: Tensor, *rest: Tensor, kernel_size: int) -> Tensor:
        _, offset, modulation = rest
        logits = torch.einsum("nchw,nckhw->nkhw", query, sample(key, offset, modulation, kernel_size))
        if key.shape[-2:] == (grid, grid):
            found["Eq. 3, divided by a"].append(logits)
            found["Eq. 3 as written"].append(logits * pool)
        else:
            found["Eq. 2"].append(logits)
        return sampled_attention(query, key, *rest, kernel_size=kernel_size)

    with torch.inference_mode(), patch.object(affinity, "sampled_attention", watched):
        model(torch.stack([samples[index][0] for index in range(BATCH)]))
    return [
        (
            title,
            statistics.mean(each.std(dim=1).mean().item() for each in logits),
            statistics.mean(each.softmax(dim=1).amax(dim=1).mean().item() for each in logits),
        )
        for title, logits in found.items()
    ]


def train(name: str, change: Callable[[Segmenter], None], data: str) -> tuple[float, float]:
    """The mean loss and the median gradient norm of the last 10 steps."""
    torch.manual_seed(0)
    labels = open_dataset(data, "train").labels
    model = ddsm_zoo.create_model(name, num_classes=len(labels), pretrained_backbone=True)
    change(model)
    model.train()
    samples = open_dataset(data, "train", EvalTransform(ddsm_zoo.resolve_data_config(model)))
    head = [parameter for key, parameter in model.named_parameters() if not key.startswith("backbone.")]
    groups = [{"params": list(model.backbone.parameters()), "lr": 5e-4}, {"params": head, "lr": 2.5e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=2e-2)
    loss_of = SegmentationLoss(ignore_index=labels.ignore_index)
    order = torch.Generator().manual_seed(1)
    losses, norms = [], []
    for _ in range(STEPS):
        picked = [samples[index] for index in torch.randint(IMAGES, (BATCH,), generator=order).tolist()]
        images = torch.stack([image[:, : CROP[0], : CROP[1]] for image, _ in picked])
        targets = torch.stack([mask[: CROP[0], : CROP[1]] for _, mask in picked])
        loss = loss_of(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 10.0).item())
        optimizer.step()
        losses.append(loss.item())
    return statistics.mean(losses[-10:]), statistics.median(norms[-10:])


def main(data: str) -> None:
    """Print both tables."""
    print("| Softmax of | Deviation of the logits | Largest affinity |\n| --- | ---: | ---: |")
    for title, deviation, largest in starts(data):
        print(f"| {title} | {deviation:.2f} | {largest:.2f} |", flush=True)
    print("\n| Variant | Loss | Gradient norm |\n| --- | ---: | ---: |")
    for title, (name, change) in VARIANTS.items():
        loss, norm = train(name, change, data)
        print(f"| {title} | {loss:.3f} | {norm:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
