"""Export a model to a file that runs without this package. The file is kept only if its answers match the model's."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_zoo.config import Preprocess, check_threshold
from ddsm_zoo.data.images import SUFFIXES, read_image
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.data.transforms import ImageTransform
from ddsm_zoo.errors import ArgumentError, PackageError
from ddsm_zoo.evaluation.evaluate import evaluate
from ddsm_zoo.export.program import (
    Agreement,
    Classes,
    ExportError,
    Normalize,
    Run,
    compare,
    open_torch,
    trace,
    write_torch,
)
from ddsm_zoo.inference.modes import Predict, full_image
from ddsm_zoo.inference.preparation import model_labels, model_threshold, prepare
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.memory import enough_memory
from ddsm_zoo.version import __version__
from ddsm_zoo.zoo.factory import resolve_data_config

SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}  # suffixes by which other tools recognize the files
# Sizes (H, W) to check a file for any size on: a square, odd sides, a street, a strip
CHECKED_SIZES = ((64, 64), (65, 97), (360, 480), (33, 500))
TOLERANCE = 1e-4
SAME_CLASS = 0.9999
# 8 bits round, so some pixels change class. You judge how many are acceptable.
SAME_CLASS_INT8 = 0.9
# They depend on fractions of a pixel and on small score differences, which 8 bits cannot represent
EXACT_IN_INT8 = (".spatial.", ".channel.", "classifier")
CALIBRATION_IMAGES = 32
COMPARED_IMAGES = 3
CALIBRATION_SIZE = (360, 480)
# No special size, so that a trace for any size does not specialize to one
TRACED = (96, 160)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Format, input and output of an exported file.

    Attributes:
        format: "onnx" for ONNX Runtime, "torch" for ``torch.export.load``.
        size: The only image size (H, W) that the file takes. Unless given, any size with sides from 33 pixels.
        preprocess: Take 8-bit RGB images (1, H, W, 3) and normalize them inside. Otherwise the input is normalized, (1,
            3, H, W).
        argmax: Give class ids (1, H, W) in 8 bits instead of logits. A model of a single class gives 1 where its
            probability exceeds the threshold, else 0.
        int8: Compute convolutions in 8 bits, except those of the affinities. ONNX only.
        images: Folder of images like those in use. They replace rendered images for comparing file and model and for
            calibrating the 8-bit ranges.
        data: Data set to score file and model on, as `evaluate` takes it.
        threshold: Threshold of a model of a single class, 0 to 1. Unless given, that of its weights.

    Raises:
        ValueError: The size or the threshold is invalid, or options exclude each other.
    """

    format: Literal["onnx", "torch"] = "onnx"
    size: tuple[int, int] | None = None
    preprocess: bool = False
    argmax: bool = False
    int8: bool = False
    images: Path | None = None
    data: str | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_threshold(self.threshold, num_classes=1)
        if self.size is not None and min(self.size) < 1:
            raise ArgumentError(f"size is {self.size[0]} x {self.size[1]}, expected a height and a width of at least 1")
        if self.size is not None and self.data is not None:
            raise ArgumentError(
                f"got a size and the data {self.data}, expected one: images have sizes of their own",
                kind="options",
                got=self.data,
            )
        if self.int8 and self.format != "onnx":
            raise ArgumentError(
                f"got int8 with format {self.format!r}, expected 'onnx': only ONNX files have 8 bits here",
                kind="options",
                name="format",
                got=self.format,
                expected="onnx",
            )


def export(
    model: str | Segmenter,
    path: str | os.PathLike[str],
    options: ExportOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Export a model to a file and check the file against the model.

    The file is opened and tried on three images before it replaces an existing one.

    Args:
        model: Model, which is moved to the CPU, or name of a pretrained model.
        path: Target file, ending in ``.onnx`` or ``.pt2`` to match the format.
        options: Format, input and output of the file.
        progress: Called with the name of each step when it begins.

    Returns:
        Plain data with ``file``, ``bytes`` and the ``metadata`` in the file. ``agreement`` has for each ``size`` the
            largest ``difference`` between two logits and in ``argmax`` the share of pixels with the same class. With
            ``options.data``, ``miou`` has the scores of ``model`` and ``file``.

    Raises:
        ExportError: The model cannot be traced, or the file disagrees with it. No file is left.
        ValueError: ``path`` has the wrong suffix, or memory does not suffice for the size.
        LookupError: An optional package is not installed.
        OutputError: The file cannot be written.
        Exception: Anything that `Predictor` and `evaluate` raise.
    """
    options = options or ExportOptions()
    if Path(path).suffix != SUFFIX[options.format]:
        raise ArgumentError(
            f"the file is called {os.fspath(path)}, expected a name ending in {SUFFIX[options.format]} for the "
            f"format {options.format}",
            kind="file-suffix",
            path=path,
            expected=SUFFIX[options.format],
        )
    say = progress or (lambda _: None)
    onnx = _onnx_door() if options.format == "onnx" else None
    eager = prepare(model, "cpu")
    threshold = model_threshold(eager, options.threshold)
    preprocess = resolve_data_config(eager)
    pictures = _compared_pictures(options)
    calibration = list(_calibration_pictures(options, preprocess)) if options.int8 else []
    metadata = _metadata(eager, options, threshold)
    take = _taking(preprocess, options)
    with atomic_path(path) as temporary, enough_memory("export for this size", "choose a smaller one"):
        say("tracing")
        program = trace(_deployed(eager, options, threshold), *_example(options))
        say("writing")
        if onnx is None:
            write_torch(program, temporary, metadata)
            run = open_torch(temporary)
        else:
            output = "classes" if options.argmax else "logits"
            with tempfile.TemporaryDirectory() as folder:
                exact = Path(folder) / "exact.onnx" if options.int8 else temporary
                onnx.write_onnx(program, exact, output, metadata)
                if options.int8:
                    say("calibrating")
                    onnx.quantize(exact, temporary, map(take, calibration), EXACT_IN_INT8)
            run = onnx.open_onnx(temporary)
        say("comparing")
        predict, normalize = full_image(eager), _taking(preprocess, ExportOptions())
        agreement = [
            compare(size, ((predict(normalize(each)), run(take(each))) for each in _resized(pictures, size)), threshold)
            for size in _checked_sizes(options)
        ]
        _refuse(agreement, options)
        figures: dict[str, Any] = {
            "file": os.fspath(path),
            "bytes": temporary.stat().st_size,
            "metadata": metadata,
            "agreement": [dataclasses.asdict(row) for row in agreement],
        }
        if options.data is not None:
            candidates = {"model": predict, "file": _scoring(run, preprocess, eager.num_classes, options)}
            figures["miou"] = {}
            for name, candidate in candidates.items():
                say(f"scoring the {name}")
                given = None if options.argmax and name == "file" else threshold  # the file contains the threshold
                scores = evaluate(candidate, options.data, preprocess=preprocess, threshold=given)
                figures["miou"][name] = scores["miou"]
    return figures


def _onnx_door() -> ModuleType:
    try:
        from ddsm_zoo.export import onnx as onnx_file
    except ModuleNotFoundError as error:
        raise PackageError.needed("ONNX files need", error.name, "export") from error
    return onnx_file


def _deployed(eager: Segmenter, options: ExportOptions, threshold: float | None) -> nn.Module:
    """Add the file's preprocessing and argmax to the model."""
    before = [Normalize(resolve_data_config(eager))] if options.preprocess else []
    if options.argmax and eager.num_classes > 256:
        raise ArgumentError(
            f"the model has {eager.num_classes} classes, 8 bits hold at most 256; export logits instead",
            name="num_classes",
            got=eager.num_classes,
            expected="at most 256",
        )
    after = [Classes(threshold)] if options.argmax else []
    return nn.Sequential(*before, eager, *after)


def _example(options: ExportOptions) -> tuple[Tensor, dict[int, str]]:
    """Return an example input of the file, and the names of its dimensions of variable size."""
    height, width = options.size or TRACED
    if options.preprocess:
        example, names = torch.zeros(1, height, width, 3, dtype=torch.uint8), {1: "height", 2: "width"}
    else:
        example, names = torch.zeros(1, 3, height, width), {2: "height", 3: "width"}
    return example, names if options.size is None else {}


def _taking(preprocess: Preprocess, options: ExportOptions) -> Callable[[Image.Image], Tensor]:
    """Return the function from a picture to the file's input. Images are not enlarged by `Preprocess.enlargement`."""
    if options.preprocess:
        return lambda picture: torch.from_numpy(np.array(picture))[None]
    transform = ImageTransform(dataclasses.replace(preprocess, min_size=None))
    return lambda picture: transform(picture)[None]


def _scoring(run: Run, preprocess: Preprocess, num_classes: int, options: ExportOptions) -> Predict:
    """Wrap the file as a model that takes normalized images and returns scores."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))

    def predict(image: Tensor) -> Tensor:
        if options.preprocess:
            image = (255 * (image * std + mean)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        answer = run(image)
        return F.one_hot(answer.long(), max(2, num_classes)).permute(0, 3, 1, 2).float() if options.argmax else answer

    return predict


def _metadata(eager: Segmenter, options: ExportOptions, threshold: float | None) -> dict[str, str]:
    """Return the facts that a user of the file alone needs. Lists are JSON. Labels are those of the ids in masks."""
    known, labels, preprocess = eager.provenance, model_labels(eager), resolve_data_config(eager)
    eight_bits = "uint8 RGB (1, H, W, 3)"
    normalized = "float32 RGB (1, 3, H, W), scaled to 0..1, minus mean, divided by std"
    return {
        "model": known.name,
        "sha256": (known.weights and known.weights.sha256) or "",
        "license": known.weights.license if known.weights else "",
        "labels": json.dumps(labels.names),
        "palette": json.dumps(labels.palette),
        "mean": json.dumps(preprocess.mean),
        "std": json.dumps(preprocess.std),
        "min_size": json.dumps(preprocess.min_size or (1, 1)),
        "input": eight_bits if options.preprocess else normalized,
        "output": _output(options, threshold),
        **({} if threshold is None else {"threshold": json.dumps(threshold)}),
        "ddsm_zoo": __version__,
    }


def _output(options: ExportOptions, threshold: float | None) -> str:
    if options.argmax:
        return "uint8 classes (1, H, W)"
    if threshold is not None:
        return f"float32 logits (1, 1, H, W), whose sigmoid exceeds {threshold:g} where the class is 1, else 0"
    return "float32 logits (1, K, H, W)"


def _checked_sizes(options: ExportOptions) -> Sequence[tuple[int, int]]:
    """Return the sizes to check. 8-bit ranges hold for images like the calibration images, not for thumbnails."""
    if options.size is not None:
        return [options.size]
    return [CALIBRATION_SIZE] if options.int8 else CHECKED_SIZES


def _compared_pictures(options: ExportOptions) -> list[Image.Image]:
    """Return pictures of the folder or, without one, the package's sample and rendered scenes."""
    if options.images is not None:
        return list(_spread(options.images, COMPARED_IMAGES))
    with as_file(files("ddsm_zoo") / "data" / "sample" / "street.png") as path:
        sample = read_image(path)
    return [sample, *(Image.fromarray(render_scene(seed)[0]) for seed in range(COMPARED_IMAGES - 1))]


def _resized(pictures: list[Image.Image], size: tuple[int, int]) -> Iterator[Image.Image]:
    """Resize the pictures to ``size`` (H, W)."""
    height, width = size
    return (picture.resize((width, height)) for picture in pictures)


def _spread(folder: Path, count: int) -> Iterator[Image.Image]:
    """Read at most ``count`` images, spread evenly over the sorted paths of the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ArgumentError(
            f"no images in the folder {folder}, expected {', '.join(sorted(SUFFIXES))}", kind="no-images", path=folder
        )
    return (read_image(path) for path in paths[:: -(-len(paths) // count)])


def _calibration_pictures(options: ExportOptions, preprocess: Preprocess) -> Iterator[Image.Image]:
    """Yield calibration pictures at the size that the model sees. Without a folder they are rendered."""
    pictures: Iterator[Image.Image]
    if options.images is None:
        pictures = (Image.fromarray(render_scene(seed, CALIBRATION_SIZE)[0]) for seed in range(CALIBRATION_IMAGES))
    else:
        pictures = _spread(options.images, CALIBRATION_IMAGES)
    for picture in pictures:
        factor = preprocess.enlargement(picture.height, picture.width)
        height, width = options.size or (round(factor * picture.height), round(factor * picture.width))
        yield picture.resize((width, height), Image.Resampling.BILINEAR)


def _refuse(agreement: list[Agreement], options: ExportOptions) -> None:
    """Raise ExportError with the deviation if the file's answers differ from the model's."""
    floor = SAME_CLASS_INT8 if options.int8 else SAME_CLASS
    for row in agreement:
        where = f"at {row.size[0]} x {row.size[1]} pixels; the file was not kept"
        if row.argmax < floor:
            raise ExportError(
                f"the exported model gives {100 * row.argmax:.2f} % of the pixels the same class, expected "
                f"{100 * floor:g} %, {where}",
                kind="export-differs",
                got=row.argmax,
                expected=floor,
            )
        if not options.int8 and row.difference is not None and not row.difference <= TOLERANCE:
            raise ExportError(
                f"the exported model's logits differ by up to {row.difference:.3g}, expected {TOLERANCE:g}, {where}",
                kind="export-differs",
                got=row.difference,
                expected=TOLERANCE,
            )
