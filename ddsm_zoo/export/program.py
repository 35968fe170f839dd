"""Exported programs, and their agreement with the model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ddsm_zoo.config import Preprocess
from ddsm_zoo.errors import UserError
from ddsm_zoo.inference.scores import predict_ids
from ddsm_zoo.utils.files import to_json

Run = Callable[[Tensor], Tensor]
"""Runs an opened file: image tensor in the file's format -> logits (N, K, H, W) or classes (N, H, W)."""

# Below 33 pixels the deepest features are one cell wide, and a trace for larger sizes may not hold
MIN_SIDE = 33
METADATA = "metadata.json"


class ExportError(UserError, ValueError):
    """Raised for a model that cannot be exported, or for a file that disagrees with the model."""

    kind = "export"


class Normalize(nn.Module):
    """Convert 8-bit RGB images (N, H, W, C), as decoders give them, to the network's input (N, C, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocess, name)).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).to(self.mean.dtype).contiguous()
        return (pixels / 255 - self.mean) / self.std


class Classes(nn.Module):
    """Convert logits (N, K, H, W) of at most 256 classes to the class id of each pixel, uint8 (N, H, W).

    ``threshold`` is that of `predict_ids`.
    """

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, logits: Tensor) -> Tensor:
        return predict_ids(logits, self.threshold).to(torch.uint8)


def trace(module: nn.Module, example: Tensor, dynamic: Mapping[int, str]) -> ExportedProgram:
    """Trace ``module`` in evaluation mode to a program of torch operators with its weights.

    ``dynamic`` names the input dimensions that may have any size of at least MIN_SIDE. All others are as in
    ``example``. Raises ExportError for a module that cannot be traced for all of these sizes.
    """
    dims = {dim: Dim(name, min=MIN_SIDE) for dim, name in dynamic.items()}
    try:
        with torch.no_grad():
            program = torch.export.export(module.eval(), (example,), dynamic_shapes=(dims or None,), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"{type(module).__name__} cannot be exported: {reason}", name=type(module).__name__
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def write_torch(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the program for ``torch.export.load``, with the metadata as a separate file in the archive."""
    # Through memory, because torch's own writer ends the process when the disk is full.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: to_json(metadata)})
    path.write_bytes(buffer.getbuffer())


def open_torch(path: Path) -> Run:
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(image: Tensor) -> Tensor:
        out: Tensor = module(image)
        return out

    return run


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of a file with the model at one ``size`` (H, W).

    ``difference`` is the largest difference between two logits, None for a file that gives classes. ``argmax`` is the
    share of pixels with the same class id, 0 to 1.
    """

    size: tuple[int, int]
    difference: float | None
    argmax: float


def compare(
    size: tuple[int, int], answers: Iterable[tuple[Tensor, Tensor]], threshold: float | None = None
) -> Agreement:
    """Measure the agreement over pairs of answers.

    Each pair is the model's logits (N, K, H, W) and the file's logits or classes (N, H, W). ``threshold`` is that of
    `predict_ids`.
    """
    differences: list[float] = []
    same = pixels = 0
    for logits, answer in answers:
        if answer.dim() == logits.dim():
            differences.append((answer - logits).abs().max().item())
            answer = predict_ids(answer, threshold)
        hits = answer == predict_ids(logits, threshold)
        same, pixels = same + int(hits.sum()), pixels + hits.numel()
    # not Python's `max`, which ignores NaN
    difference = torch.tensor(differences).max().item() if differences else None
    return Agreement(size=size, difference=difference, argmax=same / pixels)
