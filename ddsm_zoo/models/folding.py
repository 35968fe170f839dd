"""Batch norm folded into the preceding convolutions, for inference."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import DeformConv2d

_CONVOLUTIONS = (nn.Conv2d, DeformConv2d)
# Hooks that compute the weight before each run, torch's older way of parametrizing it
_WEIGHT_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)


@torch.no_grad()
def fold_norms(model: nn.Module, example: Tensor) -> None:
    """Fold every batch norm that takes the output of one convolution into that convolution, in place.

    One run on ``example`` (N, C, H, W) finds the pairs, so it works for any backbone. Each batch norm is replaced by
    the rest of its work: nothing, or an activation.

    Args:
        model: Model in evaluation mode, changed in place.
        example: Images (N, C, H, W) that the model can run on.
    """
    for convolution, norm in _pairs(model, example):
        _settle(convolution)
        _fold(convolution, norm)
        _replace(model, norm, nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity())


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[Any, Any]]:
    """Pair each convolution with the batch norm that alone takes its output."""
    reads = _Reads()
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # keyed by id(); holding the tensors keeps ids unique
    pairs: dict[nn.Module, tuple[nn.Module, Tensor]] = {}
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, _CONVOLUTIONS):
            outputs[id(output)] = (module, output)
            reads.count[id(output)] = 0
        elif id(inputs[0]) in outputs:
            pairs[module] = outputs[id(inputs[0])]

    watched = (*_CONVOLUTIONS, nn.BatchNorm2d)
    handles = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, watched)]
    try:
        with reads:
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    # skip modules that run twice, since one folded weight would serve two places, and outputs that are read twice: by a
    # shortcut around the batch norm, or by an in-place activation before it
    return [
        (conv, norm)
        for norm, (conv, output) in pairs.items()
        if calls[conv] == calls[norm] == reads.count[id(output)] == 1
    ]


class _Reads(TorchDispatchMode):
    """Count the operations that read each tensor, by its id()."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _settle(convolution: Any) -> None:
    """Replace a weight or bias that is computed, as by weight norm or pruning, by its value."""
    if parametrize.is_parametrized(convolution):
        for name in list(convolution.parametrizations):
            parametrize.remove_parametrizations(convolution, name)
    for key, hook in list(convolution._forward_pre_hooks.items()):
        if isinstance(hook, _WEIGHT_HOOKS):
            hook.remove(convolution)
            del convolution._forward_pre_hooks[key]


def _fold(convolution: Any, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    names = [name for name, module in model.named_modules() if module is old]
    for name in names:
        model.set_submodule(name, new)
