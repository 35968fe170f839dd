"""The networks that are compared, and how each is made ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.baselines import BASELINES
from ddsm_zoo.models import Complexity, complexity, count
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.registry import model_config

OURS = "uper_ddsm_r101"
TWIN = "uper_r101"
OWN = (OURS, TWIN, "uper_dcn_r101")
DANET = "DANet-R101, stride 8"
CLASSES = 19
COMPILER = "inductor"


def candidates() -> dict[str, nn.Module]:
    """Ours, then the baselines."""
    return {name: build(name) for name in (*OWN, *BASELINES)}


def build(name: str) -> nn.Module:
    """A peer, or a model of ours as `Predictor` runs it, with normalization folded; in evaluation mode."""
    if name in BASELINES:
        return BASELINES[name](CLASSES).eval()
    return create_model(name, num_classes=CLASSES).fuse()


def lay_out(model: nn.Module, image: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Bring ``model`` to the image's device and type and both into ``memory_format``; the image."""
    ready: Any = model.to(image.device, image.dtype)
    ready.to(memory_format=memory_format)  # its type leaves out that a format alone will do
    return image.contiguous(memory_format=memory_format)


def inference(network: Callable[[Tensor], Tensor], image: Tensor, *, half: bool = False) -> Callable[[], Tensor]:
    """A call without gradients, with ``half`` under autocast to bfloat16."""

    def infer() -> Tensor:
        with torch.inference_mode(), torch.autocast(image.device.type, torch.bfloat16, enabled=half):
            return network(image)

    return infer


def compile_network(model: nn.Module, image: Tensor) -> tuple[Callable[[Tensor], Tensor], str]:
    """The model compiled for that image, and how far: "whole", or "in parts" if the compiler loses its way within."""
    whole: Callable[[Tensor], Tensor] = torch.compile(model, fullgraph=True, backend=COMPILER)
    try:
        inference(whole, image)()
    except RuntimeError:
        parts: Callable[[Tensor], Tensor] = torch.compile(model, backend=COMPILER)
        return parts, "in parts"
    return whole, "whole"


def cost(name: str, size: tuple[int, int]) -> Complexity:
    """Parameters and multiply-adds for one image of ``size`` (H, W)."""
    if name not in BASELINES:
        return complexity(model_config(name), size)
    with torch.device("meta"):
        return count(BASELINES[name](CLASSES), (3, *size))
