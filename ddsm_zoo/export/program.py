"""Models as files that run where this package is not, and whether such a file answers as the model does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ddsm_zoo.config import Preprocess
from ddsm_zoo.utils.files import to_json

Run = Callable[[Tensor], Tensor]
"""What an opened file does: an image tensor as the file takes it -> logits (N, K, H, W) or classes (N, H, W)."""

# Below 33 pixels the deepest features are one cell wide, and what is traced for more need not hold
MIN_SIDE = 33
METADATA = "metadata.json"


class ExportError(ValueError):
    """A model that cannot be exported, or a file that does not do what the model does."""


class Normalize(nn.Module):
    """8-bit RGB images as decoders give them, (N, H, W, C) -> the network's input (N, C, H, W)."""

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
    """Logits (N, K, H, W) of at most 256 classes -> the highest class of each pixel, uint8 (N, H, W)."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1).to(torch.uint8)


def trace(module: nn.Module, example: Tensor, dynamic: Mapping[int, str]) -> ExportedProgram:
    """``module`` in evaluation mode as a program of torch's operators, with its weights.

    ``dynamic`` names the dimensions of the input that may have any size of at least MIN_SIDE; all else is as in
    ``example``. Raises ExportError for a module that cannot be traced for all of these sizes.
    """
    dims = {dim: Dim(name, min=MIN_SIDE) for dim, name in dynamic.items()}
    try:
        with torch.no_grad():
            program = torch.export.export(module.eval(), (example,), dynamic_shapes=(dims or None,), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{type(module).__name__} cannot be exported: {reason}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where on this machine the source code lies
    return program


def write_torch(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the program for ``torch.export.load``, the metadata as a file of its own in the archive."""
    torch.export.save(program, path, extra_files={METADATA: to_json(metadata)})


def open_torch(path: Path) -> Run:
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(image: Tensor) -> Tensor:
        out: Tensor = module(image)
        return out

    return run


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a file's answers compare with the model's logits at one ``size`` (H, W).

    ``difference`` is the largest between two logits, None for a file that gives classes; ``argmax`` is the share of the
    pixels that get the same class.
    """

    size: tuple[int, int]
    difference: float | None
    argmax: float


def compare(size: tuple[int, int], answers: Iterable[tuple[Tensor, Tensor]]) -> Agreement:
    """The agreement over pairs of the model's logits (N, K, H, W) and the file's logits or classes (N, H, W)."""
    differences: list[float] = []
    same = pixels = 0
    for logits, answer in answers:
        if answer.dim() == logits.dim():
            differences.append((answer - logits).abs().max().item())
            answer = answer.argmax(dim=1)
        hits = answer == logits.argmax(dim=1)
        same, pixels = same + int(hits.sum()), pixels + hits.numel()
    # not Python's `max`, which passes over NaN
    difference = torch.tensor(differences).max().item() if differences else None
    return Agreement(size=size, difference=difference, argmax=same / pixels)
