"""Positions of a backbone's cells in the image, and the cost of resizing as if they were elsewhere.

    python benchmarks/evidence/alignment.py --bundled-data camvid:ROOT

Prints the figures of docs/method.md. The first tables need no training: they give the centroid of the cells' receptive
fields at each level, and the distance to where a bilinear resize with ``align_corners`` False and True takes the cell
to be. Then `uper_tiny` trains on rendered scenes with three ways to resize, with equal initial values and batches, and
trained models are scored with every upsampled level shifted. Nothing in the library is patched: `PlacedSegmenter`
intercepts `F.interpolate` by torch's own `TorchFunctionMode` while its forward runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ddsm_zoo import create_model, resolve_data_config
from ddsm_zoo.data.datasets import SegmentationDataset, open_dataset
from ddsm_zoo.data.scenes.dataset import SceneDataset
from ddsm_zoo.data.transforms import EvalTransform, TrainTransform
from ddsm_zoo.evaluation.accumulate import evaluate_model
from ddsm_zoo.models import Segmenter
from ddsm_zoo.models.backbone import STRIDES, Backbone
from ddsm_zoo.training.loop import fit
from ddsm_zoo.training.recipe import Recipe

RECIPE = Path(__file__).resolve().parents[2] / "ddsm_zoo" / "recipes" / "tiny_scenes.toml"
MODEL, BUNDLED = "uper_tiny", "uper_ddsm_lite0_camvid"
BACKBONES = {
    "resnet50s": "resnet50s.gluon_in1k",
    "resnet101s": "resnet101s.gluon_in1k",
    "resnet18d": "resnet18d.ra2_in1k",
    "test_resnet": "test_resnet.r160_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
}
SIDE = 1536  # the receptive field of ResNet-101's x5 has 1059 pixels a side

# Coordinates on a map of `cells` cells at which a map of `wanted` cells reads it, both along an axis of `pixels` pixels
Places = Callable[[int, int, int], Tensor]


# ---- Table 1: where the cells of each level sit


def uniform(backbone: Backbone) -> Backbone:
    """Make the network linear and average alike over all it sees, in place: one channel, no norms, mean for max.

    With uniform weights all channels of a layer are equal, so one stands for them. Paths of a residual block weigh the
    same. On positive images below 6 in all layers every activation is the identity.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            taps = module.weight.shape[-2] * module.weight.shape[-1]
            module.groups = 1
            module.weight = nn.Parameter(torch.full((1, 1, *module.kernel_size), 1 / taps, dtype=torch.float64))
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.zeros(1).double(), torch.ones(1).double()
            module.weight, module.bias = (nn.Parameter(torch.full((1,), value).double()) for value in (1.0, 0.0))
            module.eps = 0.0
    body = backbone.body
    for name, child in list(body.named_children()):
        if isinstance(child, nn.MaxPool2d):
            setattr(body, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    return backbone.eval()


@torch.inference_mode()
def centroids(backbone: Backbone, side: int = SIDE) -> dict[int, Tensor]:
    """Centroid of every cell's receptive field along an axis, in pixels: stride -> (side / stride,) float64.

    A linear network's response to an image of coordinates, over that to an image of ones, is the mean coordinate under
    the weights with which a cell sees the pixels. Cells that see the border are drawn to the inside.

    Args:
        backbone: Backbone as `uniform` leaves it.
        side: Sides of the image in pixels.
    """
    columns = torch.arange(side, dtype=torch.float64).expand(1, 1, side, side)
    images = torch.cat((torch.ones_like(columns), columns / side)) * 1e-3  # small: ReLU6 must not clip
    weight_of = [features[:, 0, features.shape[-2] // 2] for features in backbone(images)]
    return {side // len(ones): side * moments / ones for ones, moments in weight_of}


def constants(name: str, side: int = SIDE) -> dict[int, float]:
    """The c of each stride s, where cells away from the border sit at s i + c; the input, stride 1, has 0.

    Raises ValueError if a level has no cells in the middle of the image that sit at one such c.
    """
    found = {1: 0.0}
    for stride, places in centroids(uniform(Backbone(name)), side).items():
        middle = range(len(places) // 2 - 1, len(places) // 2 + 2)
        offsets = [places[i].item() - stride * i for i in middle]
        if max(offsets) - min(offsets) > 1e-6:
            raise ValueError(f"cells of {name} at stride {stride} sit at {stride} i + {offsets}, expected one number")
        found[stride] = round(offsets[1], 6) + 0.0  # without -0
    return found


def print_geometry(found: Mapping[str, Mapping[int, float]]) -> None:
    """Table of the cells' positions and of the distance to the assumption of ``align_corners=False``."""
    print_row("Backbone", "Level", "Cell i sits at", "`False` takes it at", "Pixels off", "Off from the finer, cells")
    print_row("---", "---", "---", "---", "---:", "---:")
    for name, places in found.items():
        finer = 1
        for level, stride in enumerate(STRIDES, start=2):
            off, off_finer = (places[each] - (each - 1) / 2 for each in (stride, finer))
            print_row(
                name,
                f"x{level}",
                f"{stride} i + {places[stride]:g}",
                f"{stride} i + {(stride - 1) / 2:g}",
                f"{off:+g}",
                f"{(off - off_finer) / finer:+.2f}",
            )
            finer = stride


def misplacement(places: Places, c: Mapping[int, float], stride: int, pixels: int) -> Tensor:
    """Distance in cells of ``stride`` from each of its cells to what a resize from twice the stride brings there."""
    cells, wanted = (math.ceil(pixels / each) for each in (2 * stride, stride))
    read = places(cells, wanted, pixels)
    return (2 * stride * read + c[2 * stride] - stride * torch.arange(len(read)) - c[stride]) / stride


def print_misplacement(c: Mapping[int, float], pixels: Sequence[int]) -> None:
    """Table of the misplacement along an axis, per way to resize, from x5 to x4, the same from every level to the next.

    Coordinates are not clamped to the map here, so that the border shows what the middle does.
    """
    print_row("Pixels along the axis", "Cells of x5, x4", "Resize", "first", "middle", "last", "mean distance")
    print_row("---:", "---:", "---", *["---:"] * 4)
    for side in pixels:
        for title, places in {"`False`": half_pixel, "`True`": corners}.items():
            off = misplacement(places, c, 16, side)
            ends = [f"{off[i].item():+.2f}" for i in (0, len(off) // 2, -1)]
            print_row(
                str(side),
                f"{math.ceil(side / 32)}, {math.ceil(side / 16)}",
                title,
                *ends,
                f"{off.abs().mean().item():.2f}",
            )


# ---- Ways to resize


def half_pixel(cells: int, wanted: int, _pixels: int) -> Tensor:
    """``align_corners=False``: both maps cover the same area."""
    return (torch.arange(wanted, dtype=torch.float64) + 0.5) * (cells / wanted) - 0.5


def corners(cells: int, wanted: int, _pixels: int) -> Tensor:
    """``align_corners=True``: the first cells of both maps coincide, and the last."""
    return torch.arange(wanted, dtype=torch.float64) * ((cells - 1) / max(wanted - 1, 1))


def geometric(cells: int, wanted: int, pixels: int, *, c: Mapping[int, float]) -> Tensor:
    """Every cell where it sits, s i + c[s]. A pooled map, which has another stride, covers the whole area."""
    source, target = pixels / cells, pixels / wanted
    if source not in c or target not in c:
        return half_pixel(cells, wanted, pixels)
    return (target * torch.arange(wanted, dtype=torch.float64) + c[int(target)] - c[int(source)]) / source


def shifted(cells: int, wanted: int, pixels: int, *, by: float) -> Tensor:
    """`half_pixel`, but a level that is brought to a finer one is read ``by`` cells of the finer one further on."""
    places = half_pixel(cells, wanted, pixels)
    between_levels = pixels / cells in STRIDES and pixels / wanted in STRIDES
    return places + by * cells / wanted if between_levels else places


def interpolate(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read (N, C, h, w) bilinearly at coordinates rows (H,) and columns (W,), clamped to the map: (N, C, H, W)."""
    across, down = (
        (1 - (places.clamp(0, cells - 1)[:, None] - torch.arange(cells)).abs()).clamp(min=0).to(features.dtype)
        for places, cells in ((columns, features.shape[-1]), (rows, features.shape[-2]))
    )
    return down @ (features @ across.mT)


def ways_for(c: Mapping[int, float]) -> dict[str, Places]:
    """Three ways to resize the levels of a backbone whose cells sit at s i + c[s]."""
    return {"`False`": half_pixel, "`True`": corners, "geometric": partial(geometric, c=c)}


class Interpolation(TorchFunctionMode):
    """Replaces every bilinear `F.interpolate` inside the block by a reading at ``places``.

    Args:
        places: Way to resize.
        size: Height and width in pixels of the image that the maps cover.
    """

    def __init__(self, places: Places, size: tuple[int, int]) -> None:
        super().__init__()
        self.places, self.size = places, size

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.interpolate:
            return func(*args, **kwargs)
        (features,) = args
        sides = zip(features.shape[-2:], kwargs["size"], self.size, strict=True)
        return interpolate(features, *(self.places(*side) for side in sides))


class PlacedSegmenter(Segmenter):
    """A model whose maps are resized by ``places``."""

    places: Places

    def forward(self, x: Tensor, auxiliary: bool = False) -> Tensor | dict[str, Tensor]:
        with Interpolation(self.places, self._padded(x)):
            return super().forward(x, auxiliary=auxiliary)


def place(model: Segmenter, places: Places) -> PlacedSegmenter:
    """Copy of a model that resizes by ``places``."""
    placed = PlacedSegmenter(model.config)
    placed.load_state_dict(model.state_dict())
    placed.provenance, placed.places = model.provenance, places
    return placed.train(model.training)


# ---- Table 2: the cost of a shift


class RenderedScenes(SceneDataset):
    """Scenes that are rendered once and kept."""

    def __init__(self, count: int, split: str, transform: Any, seed: int = 0) -> None:
        super().__init__(count, split, transform, seed)
        load = super().load
        self.items = [load(index) for index in range(count)]

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index]


def score(model: nn.Module, samples: SegmentationDataset) -> tuple[float, float]:
    """mIoU and the mean boundary F at the published shares of the diagonal, in percent."""
    counted = evaluate_model(model.eval(), samples, len(samples.labels), samples.labels.ignore_index, boundary=True)
    figures = counted.figures()
    return 100 * figures["miou"], 100 * figures["boundary_f"]["mean"]


def train_placed(places: Places, seed: int, steps: int, train_set: RenderedScenes) -> PlacedSegmenter:
    """`uper_tiny` trained by the recipe with ``seed``, but for ``steps`` steps at least (whole epochs)."""
    recipe = Recipe.load(RECIPE)
    epochs = -(-steps // (len(train_set) // recipe.batch_size))
    recipe = dataclasses.replace(recipe, model=MODEL, epochs=epochs, validate_every=epochs, seed=seed)
    torch.manual_seed(seed)
    model = place(create_model(MODEL, labels=train_set.labels, pretrained_backbone=False), places)
    train_set.seed = seed
    with tempfile.TemporaryDirectory() as folder:
        few = RenderedScenes(1, "val", EvalTransform(resolve_data_config(model)))
        fit(model, recipe, train_set, few, folder, ignore_index=train_set.labels.ignore_index)
    return model


def open_scenes(scenes: Sequence[int]) -> tuple[RenderedScenes, RenderedScenes]:
    """Rendered scenes to train and to score on."""
    recipe = Recipe.load(RECIPE)
    preprocess = dataclasses.replace(resolve_data_config(create_model(MODEL)), size=None)
    transform = TrainTransform(preprocess, recipe.crop_size, 255, recipe.scale, recipe.flip, recipe.jitter)
    return RenderedScenes(scenes[0], "train", transform), RenderedScenes(scenes[1], "val", EvalTransform(preprocess))


def print_training(ways: Mapping[str, Places], seeds: Sequence[int], steps: int, scenes: Sequence[int]) -> None:
    """Tables of the trainings, and of the models trained with ``align_corners=False`` when their maps are shifted."""
    train_set, val_set = open_scenes(scenes)
    scores: dict[str, list[tuple[float, float]]] = {title: [] for title in ways}
    later: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        for title, places in ways.items():
            model = train_placed(places, seed, steps, train_set)
            scores[title].append(score(model, val_set))
            print(f"seed {seed}, {title}: {scores[title][-1]}", flush=True)
            if places is half_pixel:
                for name, changed in shifts(ways).items():
                    later.setdefault(name, []).append(score(place(model, changed), val_set))
    first = next(iter(ways))
    print()
    print_scores("Trained and scored with", scores, scores[first], "`False`")
    print()
    print_scores("Trained with `False`, scored with", later, scores[first], "its own")


def print_bundled(ways: Mapping[str, Places], data: str, images: int) -> None:
    """Table of the bundled model's scores on the first images of val when its maps are shifted."""
    model = create_model(BUNDLED, pretrained=True)
    samples = open_dataset(data, "val", EvalTransform(dataclasses.replace(resolve_data_config(model), size=None)))
    samples.pairs = samples.pairs[:images]
    scores = {}
    for title, places in {**ways, **shifts(ways)}.items():
        scores[title] = [score(place(model, places), samples)]
        print(f"{title}: {scores[title]}", flush=True)
    print()
    print_scores(f"`{BUNDLED}` scored with", scores, scores["`False`"], "`False`")


def shifts(ways: Mapping[str, Places]) -> dict[str, Places]:
    """Other ways to resize than the one that a model was trained with."""
    halves = {f"every level read {by:+g} fine cells further on": partial(shifted, by=by) for by in (-0.5, 0.5)}
    return {**halves, **{title: places for title, places in ways.items() if places is not half_pixel}}


def print_scores(
    head: str, scores: Mapping[str, Sequence[tuple[float, float]]], base: Sequence[tuple[float, float]], name: str
) -> None:
    """Table of the means over the seeds, and of the paired differences from ``base``."""
    print_row(head, "Seeds", "mIoU", "Boundary F", f"mIoU over {name}", f"F over {name}")
    print_row("---", *["---:"] * 5)
    for title, each in scores.items():
        means = [f"{statistics.mean(values):.2f}" for values in zip(*each, strict=True)]
        gains = [
            spread([a - b for a, b in zip(ours, theirs, strict=True)])
            for ours, theirs in zip(zip(*each, strict=True), zip(*base, strict=True), strict=True)
        ]
        print_row(title, str(len(each)), *means, *gains)


def spread(values: Sequence[float]) -> str:
    """Mean, and from two values on the standard deviation."""
    return f"{statistics.mean(values):+.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps of each training (0: none)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), metavar="N")
    parser.add_argument("--scenes", type=int, nargs=2, default=[64, 32], metavar=("TRAIN", "VAL"), help="rendered")
    parser.add_argument("--bundled-data", default="scenes:24", metavar="DATA", help="scores the bundled model")
    parser.add_argument("--bundled-images", type=int, default=24, metavar="N", help="of val (0: none)")
    options = parser.parse_args()
    found = {title: constants(name) for title, name in BACKBONES.items()}
    print_geometry(found)
    print()
    print_misplacement(found["resnet50s"], (384, 1024, 1025))
    print()
    if options.steps:
        print_training(ways_for(found["test_resnet"]), options.seeds, options.steps, options.scenes)
        print()
    if options.bundled_images:
        print_bundled(ways_for(found["efficientnet_lite0"]), options.bundled_data, options.bundled_images)


if __name__ == "__main__":
    main()
