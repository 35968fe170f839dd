"""What a model does at one pixel, and what two models make of one image: the paper's Figs. 4 and 1 as figures."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ddsm_zoo.data.images import read_mask
from ddsm_zoo.data.masks import MaskDecoder, identity
from ddsm_zoo.inference.predictor import ImageInput, Predictor, Segmentation
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.layers import DDSM, SpatialAffinity
from ddsm_zoo.layers.sampler import watch_taps
from ddsm_zoo.models import Segmenter
from ddsm_zoo.ops.probe import probe
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.visualize import BLACK, Mask, colorize, error_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".webp")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One module, which forms x~ of ``stage``, as the pixel that is explained sees it.

    The pixel lies in the cell of ``pitch`` pixels a side around ``centre``; its K taps read at ``positions`` (K, 2),
    with ``modulations`` (K,), and weigh what they read by ``affinities`` (K,), which add up to one. Places are (x, y)
    in pixels of the image, whose centres are whole numbers. Features are (C, h, w): ``high`` and ``low``, what goes in;
    ``spatial``, S; and ``both``, S + K, None for a module without K.
    """

    stage: int
    pitch: float
    center: tuple[float, float]
    positions: Floats
    affinities: Floats
    modulations: Floats
    high: Floats
    low: Floats
    spatial: Floats
    both: Floats | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What DDSM does at the pixel ``at`` (x, y) of an image: ``levels``, its modules from coarse to fine.

    ``size`` (H, W) is that of the image as the model extends it, over which the features stretch. ``taps_on_map`` is,
    by sampler, the share of its taps, at all positions, that read the map and not the zeros around it.
    """

    result: Segmentation
    at: tuple[int, int]
    size: tuple[float, float]
    levels: tuple[Level, ...]
    taps_on_map: Mapping[str, float]

    @property
    def label(self) -> str:
        """The class of the pixel."""
        x, y = self.at
        return self.result.labels.names[int(self.result.mask[y, x])]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the pixel, its class, and of each module where its taps read and how they weigh."""
        levels = [
            {
                "stage": level.stage,
                "centre": list(level.center),
                "positions": level.positions.tolist(),
                "affinities": level.affinities.tolist(),
                "modulations": level.modulations.tolist(),
            }
            for level in self.levels
        ]
        return {"at": list(self.at), "class": self.label, "levels": levels, "taps_on_map": dict(self.taps_on_map)}

    def figure(self) -> Figure:
        """The paper's Fig. 4, a row for each module: what it looks at, what goes in and what comes out.

        Raises LookupError without the package matplotlib.
        """
        return _draw_levels(self)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two models make of one image whose labels are ``target`` (H, W): ``results`` by the models' names."""

    results: dict[str, Segmentation]
    target: Mask
    labels: LabelSpace

    def wrong(self) -> dict[str, float]:
        """The fraction of the labelled pixels that each model gets wrong."""
        known = (self.target >= 0) & (self.target < len(self.labels))
        wrong = {name: (result.mask != self.target)[known] for name, result in self.results.items()}
        return {name: float(errors.mean()) if errors.size else 0.0 for name, errors in wrong.items()}

    def figure(self) -> Figure:
        """The paper's Fig. 1: the input and its labels, both predictions, and where each errs.

        Raises LookupError without the package matplotlib.
        """
        return _draw_comparison(self)


def explain(model: str | Segmenter | Predictor, image: ImageInput, at: tuple[int, int]) -> Explanation:
    """Run a model on an image, as `Predictor` takes it, and note what its modules do at the pixel ``at`` (x, y).

    Raises what `Predictor` does, and ValueError for a pixel outside the image and for a model in which nothing samples
    pixels.
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    network = predictor.model
    modules = [module for module in network.modules() if isinstance(module, DDSM) and module.spatial]
    if not modules:
        name, fusion = network.provenance.name, network.config.fusion
        raise ValueError(
            f"{name} has the fusion {fusion!r}, which samples no pixels; expected a model with ddsm or ddsm_s"
        )
    (x, y), picture = at, _opened(predictor, image)
    if not (0 <= x < picture.width and 0 <= y < picture.height):
        raise ValueError(
            f"the pixel {x},{y} lies outside the image, expected 0,0 to {picture.width - 1},{picture.height - 1}"
        )
    with _recording(modules) as records, watch_taps(network) as counts:
        result = predictor(picture)
    if len(records) != len(modules):
        raise ValueError("an image that is cut into tiles cannot be explained; take a part of it, or no tiles")
    factor = predictor.preprocess.enlargement(picture.height, picture.width)
    height, width = (round(side * factor) for side in (picture.height, picture.width))
    rows, columns = (-(-side // network.backbone.multiple) * network.backbone.multiple for side in (height, width))
    size = picture.height * rows / height, picture.width * columns / width
    levels = tuple(_level(record, size, rows, (y, x)) for record in records)
    shares = {name: count.on_map for name, count in counts.items()}
    return Explanation(result=result, at=at, size=size, levels=levels, taps_on_map=shares)


def compare(models: Mapping[str, str | Segmenter | Predictor], image: ImageInput, target: Mask) -> Comparison:
    """Run two models of the same classes, each under a name of yours, on an image with the labels ``target`` (H, W).

    Raises what `Predictor` does, and ValueError for models of different classes and a target that does not fit.
    """
    predictors = {name: model if isinstance(model, Predictor) else Predictor(model) for name, model in models.items()}
    first = next(iter(predictors.values()))
    if len({predictor.labels.names for predictor in predictors.values()}) > 1:
        raise ValueError(f"{' and '.join(models)} have different classes, expected the same")
    labels, picture = first.labels, _opened(first, image)
    results: dict[str, Segmentation] = {}
    for name, predictor in predictors.items():
        results[name] = predictor(picture)
        error_map(results[name].mask, target, labels)  # which raises for a target that does not fit
    return Comparison(results=results, target=target, labels=labels)


def read_target(path: str | os.PathLike[str], labels: LabelSpace) -> Mask:
    """The class ids in a mask file: ids, where the one after the last class is void too, or the colours of the classes.

    Raises FileNotFoundError, ImageError, and DatasetError for a value that stands for no class.
    """
    ignore = labels.ignore_index
    colors = {color: index for index, color in enumerate(labels.palette)}
    decode = MaskDecoder(ids={len(labels): ignore, **identity(labels)}, colors={BLACK: ignore, **colors})
    return decode(read_mask(Path(path)), Path(path))


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the file's suffix, one of `FORMATS`. Raises ValueError and OutputError."""
    check_format(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for a file whose suffix is no format of figures."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"{os.fspath(path)} has no format of a figure, expected a name ending in {', '.join(FORMATS)}")


def _opened(predictor: Predictor, image: ImageInput) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        return predictor.read(image)
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


@dataclass
class _Record:
    """What went through one module: its inputs, what its sampler chose, and what came out of each half."""

    module: SpatialAffinity
    inputs: tuple[Tensor, Tensor] = field(init=False)
    sampled: tuple[Tensor, Tensor] = field(init=False)
    spatial: Tensor = field(init=False)
    channel: Tensor | None = None


@contextmanager
def _recording(modules: Sequence[DDSM]) -> Iterator[list[_Record]]:
    """The records of the modules in the order in which they were called, once the model has run."""
    records: list[_Record] = []
    with ExitStack() as handles:
        for module in modules:
            for handle in _watch(module, records):
                handles.callback(handle.remove)
        yield records


def _watch(module: DDSM, records: list[_Record]) -> list[RemovableHandle]:
    spatial = module.spatial
    assert spatial is not None
    record = _Record(spatial)

    def keep_inputs(_module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        record.inputs = inputs
        records.append(record)

    def keep_sampled(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        record.sampled = output

    def keep_spatial(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        record.spatial = output

    def keep_channel(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        record.channel = output

    return [
        module.register_forward_pre_hook(keep_inputs),
        spatial.sampler.register_forward_hook(keep_sampled),
        spatial.register_forward_hook(keep_spatial),
        *([module.channel.register_forward_hook(keep_channel)] if module.channel else []),
    ]


@torch.inference_mode()
def _level(record: _Record, size: tuple[float, float], rows: int, pixel: tuple[int, int]) -> Level:
    """``pixel`` is (row, column) of an image that has ``size`` (H, W) as the model extends it, ``rows`` of its own."""
    # which are bfloat16 where the model computes in it
    low, high = (features.to(record.module.out.weight.dtype) for features in record.inputs)
    # of a cell, in pixels; as bilinear resizing with align_corners=False has it, cell i covers i to i + 1 of them
    pitch = torch.tensor([pixels / cells for pixels, cells in zip(size, low.shape[-2:], strict=True)])
    cell = ((torch.tensor(pixel) + 0.5) / pitch).long()
    query, key, _ = record.module.project(low, high)
    offset, modulation = record.sampled
    row, column = cell.tolist()
    taps = probe(query, key, offset, modulation, (row, column), kernel_size=record.module.sampler.kernel_size)
    places = (torch.cat((cell[None], taps.places.cpu())) + 0.5) * pitch - 0.5  # the centre, then the taps
    center, *_ = places.flip(1).tolist()
    return Level(
        stage=round(math.log2(rows / low.shape[-2])),
        pitch=pitch[0].item(),
        center=(center[0], center[1]),
        positions=_array(places[1:].flip(1)),
        affinities=_array(taps.affinities),
        modulations=_array(taps.modulations),
        high=_array(high[0]),
        low=_array(low[0]),
        spatial=_array(record.spatial[0]),
        both=None if record.channel is None else _array((record.spatial + record.channel)[0]),
    )


def _array(tensor: Tensor) -> Floats:
    values: Floats = tensor.float().cpu().numpy()
    return values


def principal_colors(features: Floats) -> Floats:
    """Features (C, h, w) as a picture (h, w, 3) in 0..1: their three main components as red, green and blue.

    Of each, the middle 96 % fill the range.
    """
    channels, height, width = features.shape
    points = features.reshape(channels, -1).astype(np.float64).T
    points = points - points.mean(0)
    _, directions = np.linalg.eigh(points.T @ points)  # by rising eigenvalue
    main = directions[:, ::-1][:, :3]
    main = main * np.sign(main[np.abs(main).argmax(0), np.arange(main.shape[1])])  # eigenvectors have no sign
    components = np.zeros((height * width, 3))
    components[:, : main.shape[1]] = points @ main
    low, high = np.percentile(components, (2, 98), axis=0)
    colors: Floats = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1).astype(np.float32)
    return colors.reshape(height, width, 3)


def _draw_levels(explanation: Explanation) -> Figure:
    image, levels = explanation.result.image, explanation.levels
    titles = ["(a) input", "(b) sampled positions", "(c) high", "(d) low", "(e) S"]
    if any(level.both is not None for level in levels):
        titles.append("(f) S + K")
    figure, axes = _panels(len(levels), len(titles), image, 2.6)
    figure.suptitle(f"What DDSM samples for the pixel {explanation.at[0]},{explanation.at[1]}: {explanation.label}")
    height, width = explanation.size
    for row, level in zip(axes, levels, strict=True):
        window = _window(level, image)
        _draw_input(row[0], image, window)
        row[0].set_ylabel(f"$\\tilde{{x}}_{level.stage}$, stride {2**level.stage}")
        _draw_taps(row[1], image, level, window)
        features = [values for values in (level.high, level.low, level.spatial, level.both) if values is not None]
        for panel, values in zip(row[2:], features, strict=True):
            panel.imshow(principal_colors(values), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            panel.set(xlim=(-0.5, image.width - 0.5), ylim=(image.height - 0.5, -0.5))
        for panel in (row[0], *row[2:]):
            panel.plot(*explanation.at, marker="+", color="blue", markersize=9, markeredgewidth=1.5)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
    return figure


def _window(level: Level, image: Image.Image) -> tuple[float, float, float, float]:
    """Left, top, width and height of what to show of the image: all taps, in the proportions of the image."""
    away = np.abs(level.positions - np.asarray(level.center)).max(0)
    reach = max(*(1.2 * away / (image.width, image.height)), 3 * level.pitch / min(image.size))
    half_width, half_height = reach * image.width, reach * image.height
    x, y = level.center
    return x - half_width, y - half_height, 2 * half_width, 2 * half_height


def _draw_input(panel: Axes, image: Image.Image, window: tuple[float, float, float, float]) -> None:
    from matplotlib.patches import Rectangle

    left, top, width, height = window
    panel.imshow(image)
    panel.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="white", linewidth=1.2))


def _draw_taps(panel: Axes, image: Image.Image, level: Level, window: tuple[float, float, float, float]) -> None:
    """A cross at each position in a disc whose area is its affinity, the largest ones in per cent; the pixel's cell."""
    from matplotlib.patches import Rectangle

    panel.imshow(image, alpha=0.7)
    x, y = level.center
    pitch = level.pitch
    panel.add_patch(Rectangle((x - pitch / 2, y - pitch / 2), pitch, pitch, fill=False, edgecolor="blue"))
    panel.plot(x, y, marker="+", color="blue", markersize=12, markeredgewidth=2)
    across, down = level.positions.T
    panel.scatter(across, down, s=900 * level.affinities, color="red", alpha=0.35, linewidths=0)
    panel.scatter(across, down, s=28, color="red", marker="x", linewidths=1.2)
    main = level.affinities.argsort()[::-1][:5]
    for tap in main[level.affinities[main] > 0.005]:
        where = (float(across[tap]), float(down[tap]))
        text = panel.annotate(f"{level.affinities[tap]:.0%}", where, (4, 4), textcoords="offset points", fontsize=7)
        text.set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.8})
    left, top, width, height = window
    panel.set(xlim=(left, left + width), ylim=(top + height, top))


def _draw_comparison(comparison: Comparison) -> Figure:
    labels, results, wrong = comparison.labels, comparison.results, comparison.wrong()
    image = next(iter(results.values())).image
    panels: list[tuple[str, Image.Image]] = [("input", image), ("labels", colorize(comparison.target, labels))]
    panels += [(name, result.color()) for name, result in results.items()]
    panels += [
        (f"errors: {wrong[name]:.2%}", error_map(result.mask, comparison.target, labels))
        for name, result in results.items()
    ]
    figure, axes = _panels(3, 2, image, 3.6)
    from matplotlib.patches import Patch

    for letter, panel, (title, picture) in zip("abcdef", axes.flat, panels, strict=True):
        panel.imshow(picture)
        panel.set_title(f"({letter}) {title}", fontsize="small")
    seen = np.concatenate([comparison.target.ravel(), *(result.mask.ravel() for result in results.values())])
    present = [index for index in np.unique(seen).tolist() if 0 <= index < len(labels)]
    swatches = [Patch(color="#{:02x}{:02x}{:02x}".format(*labels.palette[i]), label=labels.names[i]) for i in present]
    figure.legend(handles=swatches, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def _panels(rows: int, columns: int, image: Image.Image, side: float) -> tuple[Figure, Any]:
    """A figure of panels (rows, columns) in the proportions of the image, ``side`` inches long, without ticks."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise LookupError("figures need the package matplotlib: pip install 'ddsm-zoo[explain]'") from error
    longest = max(image.size)
    width, height = columns * side * image.width / longest, rows * side * image.height / longest
    figure = Figure(figsize=(max(width, 4) + 0.6, max(height, 2) + 0.8), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    return figure, axes
