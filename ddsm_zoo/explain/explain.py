"""Data on what a model does at one pixel, and on where two models err in one image; `figures` draws both."""

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

from ddsm_zoo.data.images import read_mask
from ddsm_zoo.data.masks import MaskDecoder, identity
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
    """One module, which forms x~ of ``stage``, as the pixel that is explained sees it.

    The pixel lies in the cell of ``pitch`` pixels a side around ``center``; its K taps read at ``positions`` (K, 2),
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
