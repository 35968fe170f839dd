"""Precision of inference: bfloat16 where it is faster and finds the same classes, float32 elsewhere."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ddsm_zoo.inference.scores import predict_ids
from ddsm_zoo.utils.distributed import all_reduce_min
from ddsm_zoo.utils.pointwise import fast_pointwise

Precision = Literal["fp32", "bf16", "auto"]
"""fp32; bf16 to compute convolutions and matrix products in bfloat16; auto for the one `choose_precision` finds."""

Settled = Literal["fp32", "bf16"]

# Minimum share of pixels with the same class, and minimum speedup, for `auto` to choose bf16
AGREEMENT = 0.995
GAIN = 1.1
# Side of the tried part of the image in pixels, and runs per precision
SIDE = 256
RUNS = 3

logger = logging.getLogger(__name__)

_settled: weakref.WeakKeyDictionary[nn.Module, dict[torch.device, Settled]] = weakref.WeakKeyDictionary()


def has_bf16(device: torch.device) -> bool:
    """Return True if the device has instructions for bfloat16: on a CPU AVX512-BF16, AMX or Arm's BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities:
        return any(bool(found) for name, found in capabilities.items() if name.endswith("bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def run(model: nn.Module, image: Tensor, precision: Settled) -> Tensor:
    """Compute float32 logits (N, K, H, W) of an image (N, 3, H, W) on the model's device."""
    if precision == "fp32":
        with fast_pointwise(model, image):
            logits: Tensor = model(image)
        return logits
    with torch.autocast(image.device.type, torch.bfloat16):
        logits = model(image)
    return logits.float()


def choose_precision(model: nn.Module, image: Tensor) -> Settled:
    """Choose bf16 if it is faster on this machine and finds the same classes in the middle of an image, else fp32.

    A part of 256 x 256 pixels is run three times in each precision. bf16 must take at most 1 / 1.1 of the time and give
    the same class to 99.5 % of the pixels. The choice is kept in this process for the model and its device. One line of
    the log says what was chosen, and why.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, K, H, W), in evaluation mode.
        image: Normalized image (N, 3, H, W) on the model's device. A photo: noise says nothing about agreement.

    Returns:
        "fp32" or "bf16".
    """
    known = _settled.setdefault(model, {})
    if image.device not in known:
        known[image.device], reason = _choose(model, image)
        logger.info("precision auto: %s, %s", known[image.device], reason)
    return known[image.device]


def agree_on_precision(model: nn.Module, image: Tensor) -> Settled:
    """Choose the same precision in all processes of a launch: bf16 if each of them chooses it.

    `choose_precision` then keeps to it.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, K, H, W), in evaluation mode.
        image: Normalized image (N, 3, H, W), the same in every process.
    """
    image = image.to(next(model.parameters(), image).device)
    own = choose_precision(model, image)
    agreed: Settled = "bf16" if all_reduce_min(int(own == "bf16")) else "fp32"
    if agreed != own:
        logger.info("precision auto: %s, which another process chooses", agreed)
    _settled[model][image.device] = agreed
    return agreed


def settled_precision(model: nn.Module | None, precision: Precision) -> Precision:
    """Return the precision that "auto" became for the model, or "auto" if it has seen no image."""
    chosen = set() if model is None else set(_settled.get(model, {}).values())
    return chosen.pop() if precision == "auto" and len(chosen) == 1 else precision


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of the part that `choose_precision` tries."""
    top, left = max(0, height - SIDE) // 2, max(0, width - SIDE) // 2
    return slice(top, min(height, top + SIDE)), slice(left, min(width, left + SIDE))


@torch.inference_mode()
def _choose(model: nn.Module, image: Tensor) -> tuple[Settled, str]:
    if image.dtype != torch.float32:
        return "fp32", f"the model itself is {str(image.dtype).removeprefix('torch.')}"
    if not has_bf16(image.device):
        return "fp32", f"the {image.device.type} has no instructions for bfloat16"
    rows, columns = middle(image.shape[-2], image.shape[-1])
    part = image[:1, :, rows, columns].contiguous(memory_format=torch.channels_last)
    full, half = (run(model, part, precision) for precision in get_args(Settled))
    agreement = (predict_ids(full) == predict_ids(half)).float().mean().item()
    if agreement < AGREEMENT:
        return "fp32", f"bf16 gives another class to {1 - agreement:.2%} of the pixels tried"
    gain = compare_speed(lambda: run(model, part, "fp32"), lambda: run(model, part, "bf16"), image.device)
    if gain < GAIN:
        return "fp32", f"bf16 takes {1 / gain:.2f} times as long here"
    return "bf16", f"{gain:.2f} times faster than fp32 here, the same class for {agreement:.2%} of the pixels tried"


def compare_speed(full: Callable[[], object], half: Callable[[], object], device: torch.device) -> float:
    """Return how many times faster ``half`` is than ``full``, by the fastest of three runs of each, in turns."""
    fastest = []
    for call in (full, half) * RUNS:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest.append(time.perf_counter() - began)
    return min(fastest[0::2]) / min(fastest[1::2])
