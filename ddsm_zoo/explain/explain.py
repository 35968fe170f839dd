"""Inspect sampled attention at one pixel, and compare the errors of two models. `figures` draws both."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ddsm_zoo.data.masks import MaskDecoder, identity, settle
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.inference.predictor import ImageInput, Predictor, Segmentation
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.layers import DDSM, SpatialAffinity
from ddsm_zoo.layers.sampler import watch_taps
from ddsm_zoo.models import Segmenter
from ddsm_zoo.ops.probe import probe
from ddsm_zoo.utils.visualize import BLACK, Mask, error_map

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Level:
    """Sampled attention of one DDSM module at the explained pixel.

    Places are (x, y) in pixels of the image. Pixel centers are whole numbers.

    Attributes:
        stage: Stage of the x~ that the module forms.
        pitch: Side of a feature cell in pixels.
        center: Center of the cell that contains the pixel.
        positions: Tap locations (K, 2).
        affinities: Attention weights (K,) of the taps. They add up to one.
        modulations: Modulations (K,) of the taps.
        high: High-level input features (C, h, w).
        low: Low-level input features (C, h, w).
        spatial: Output S (C, h, w) of the spatial half.
        both: Output S + K (C, h, w) of both halves, None for a module without K.
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
    """Sampled attention of all DDSM modules at one pixel of an image.

    Attributes:
        result: Prediction for the image.
        at: The pixel (x, y).
        size: Size (H, W) of the image as the model extends it. The features cover this area.
        levels: Modules from coarse to fine.
        taps_on_map: Share of the taps, over all positions, that read the map and not the zeros around it, by sampler.
    """

    result: Segmentation
    at: tuple[int, int]
    size: tuple[float, float]
    levels: tuple[Level, ...]
    taps_on_map: Mapping[str, float]

    @property
    def label(self) -> str:
        """Class name of the pixel."""
        x, y = self.at
        return self.result.labels.names[int(self.result.mask[y, x])]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: the pixel, its class, and the tap locations and weights of each module."""
        levels = [
            {
                "stage": level.stage,
                "center": list(level.center),
                "positions": level.positions.tolist(),
                "affinities": level.affinities.tolist(),
                "modulations": level.modulations.tolist(),
            }
            for level in self.levels
        ]
        return {"at": list(self.at), "class": self.label, "levels": levels, "taps_on_map": dict(self.taps_on_map)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Predictions of two models for one labeled image.

    Attributes:
        results: Predictions by model name.
        target: Class ids (H, W) of the labels.
        labels: Names and colors of the class ids.
    """

    results: dict[str, Segmentation]
    target: Mask
    labels: LabelSpace

    def wrong(self) -> dict[str, float]:
        """Return the fraction of labeled pixels that each model gets wrong, 0 to 1."""
        known = (self.target >= 0) & (self.target < len(self.labels))
        wrong = {name: (result.mask != self.target)[known] for name, result in self.results.items()}
        return {name: float(errors.mean()) if errors.size else 0.0 for name, errors in wrong.items()}


def explain(model: str | Segmenter | Predictor, image: ImageInput, at: tuple[int, int]) -> Explanation:
    """Run a model on an image and inspect its sampled attention at one pixel.

    Args:
        model: Model, predictor, or name of a pretrained model.
        image: Image as `Predictor` takes it.
        at: The pixel (x, y), from 0,0 at the top left.

    Returns:
        The prediction with tap locations, modulations and attention weights of each module.

    Raises:
        ValueError: The pixel lies outside the image, the model samples no pixels, or the image is cut into tiles.
        Exception: Anything that `Predictor` raises.
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    network = predictor.model
    modules = [module for module in network.modules() if isinstance(module, DDSM) and module.spatial]
    if not modules:
        name, fusion = network.provenance.name, network.config.fusion
        raise ArgumentError(
            f"{name} has the fusion {fusion!r}, which samples no pixels; expected a model with ddsm or ddsm_s",
            kind="no-sampling",
            name=name,
            got=fusion,
            expected="ddsm or ddsm_s",
        )
    (x, y), picture = at, _opened(predictor, image)
    if not (0 <= x < picture.width and 0 <= y < picture.height):
        raise ArgumentError(
            f"the pixel {x},{y} lies outside the image, expected 0,0 to {picture.width - 1},{picture.height - 1}",
            kind="pixel-outside",
            got=(x, y),
        )
    with _recording(modules) as records, watch_taps(network) as counts:
        result = predictor(picture)
    if len(records) != len(modules):
        raise ArgumentError(
            "an image that is cut into tiles cannot be explained; take a part of it, or no tiles",
            kind="options",
            name="tile",
        )
    factor = predictor.preprocess.enlargement(picture.height, picture.width)
    height, width = (round(side * factor) for side in (picture.height, picture.width))
    rows, columns = (-(-side // network.backbone.multiple) * network.backbone.multiple for side in (height, width))
    size = picture.height * rows / height, picture.width * columns / width
    levels = tuple(_level(record, size, rows, (y, x)) for record in records)
    shares = {name: count.on_map for name, count in counts.items()}
    return Explanation(result=result, at=at, size=size, levels=levels, taps_on_map=shares)


def compare(models: Mapping[str, str | Segmenter | Predictor], image: ImageInput, target: Mask) -> Comparison:
    """Run two models with the same classes on one labeled image.

    Args:
        models: The models under names of your choice.
        image: Image as `Predictor` takes it.
        target: Class ids (H, W) of the labels.

    Returns:
        The predictions of both models.

    Raises:
        ValueError: The models have different classes, or ``target`` does not fit.
        Exception: Anything that `Predictor` raises.
    """
    predictors = {name: model if isinstance(model, Predictor) else Predictor(model) for name, model in models.items()}
    first = next(iter(predictors.values()))
    if len({predictor.labels.names for predictor in predictors.values()}) > 1:
        raise ArgumentError(
            f"{' and '.join(models)} have different classes, expected the same",
            kind="classes-differ",
            got={name: len(predictor.labels) for name, predictor in predictors.items()},
        )
    labels, picture = first.labels, _opened(first, image)
    results: dict[str, Segmentation] = {}
    for name, predictor in predictors.items():
        results[name] = predictor(picture)
        error_map(results[name].mask, target, labels)  # raises if the target does not fit
    return Comparison(results=results, target=target, labels=labels)


def read_target(path: str | os.PathLike[str], labels: LabelSpace) -> Mask:
    """Read the class ids in a mask file that holds ids or the colors of the classes.

    In a file of ids, the id after the last class is void too. Raises FileNotFoundError, ImageError, and DatasetError
    for a value that is no class.
    """
    ignore = labels.ignore_index
    colors = {color: index for index, color in enumerate(labels.palette)}
    decode = MaskDecoder(
        ids={len(labels): ignore, **identity(labels)},
        colors={BLACK: ignore, **colors},
        open_255=len(labels.in_masks) == 2,
    )
    return settle(decode, [Path(path)]).read(Path(path))


def _opened(predictor: Predictor, image: ImageInput) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        return predictor.read(image)
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


@dataclass
class _Record:
    """Inputs, sampled taps and outputs of both halves of one module."""

    module: SpatialAffinity
    inputs: tuple[Tensor, Tensor] = field(init=False)
    sampled: tuple[Tensor, Tensor] = field(init=False)
    spatial: Tensor = field(init=False)
    channel: Tensor | None = None


@contextmanager
def _recording(modules: Sequence[DDSM]) -> Iterator[list[_Record]]:
    """Record the modules in call order. The records are complete once the model has run."""
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
    """Build the level of ``pixel`` (row, column).

    ``size`` (H, W) is that of the image as the model extends it, in pixels of the image. ``rows`` is the extended
    height in the model's own pixels.
    """
    # bfloat16 if the model computes in it
    low, high = (features.to(record.module.out.weight.dtype) for features in record.inputs)
    # pixels per cell; as in bilinear resizing with align_corners=False, cell i covers i to i + 1 in units of the pitch
    pitch = torch.tensor([pixels / cells for pixels, cells in zip(size, low.shape[-2:], strict=True)])
    cell = ((torch.tensor(pixel) + 0.5) / pitch).long()
    query, key, _ = record.module.project(low, high)
    offset, modulation = record.sampled
    row, column = cell.tolist()
    taps = probe(query, key, offset, modulation, (row, column), kernel_size=record.module.sampler.kernel_size)
    places = (torch.cat((cell[None], taps.places.cpu())) + 0.5) * pitch - 0.5  # the center, then the taps
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
