"""Batch normalisation over the images of all processes, so that a batch counts the same however it is shared out."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist


def synchronize(model: nn.Module, device: torch.device) -> None:
    """Replace the batch normalisations of ``model`` in place by ones over all processes, with the same parameters.

    On GPUs these are torch's own. It has none for the CPU, where ours gives the same numbers.
    """
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, _synchronized(child, nn.SyncBatchNorm if device.type == "cuda" else SyncBatchNorm2d))
        else:
            synchronize(child, device)


def _synchronized(norm: nn.BatchNorm2d, kind: type[nn.SyncBatchNorm] | type[SyncBatchNorm2d]) -> nn.Module:
    synced = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synced.train(norm.training)
    synced._parameters.update(norm._parameters)
    synced._buffers.update(norm._buffers)
    for name, child in norm.named_children():
        synced.add_module(name, child)
    if hasattr(norm, "act"):
        synced.register_forward_hook(_activate)
    return synced


def _activate(norm: nn.Module, _: object, normalized: Tensor) -> Tensor:
    """What timm's BatchNormAct2d does behind its norm, which torch's own conversion would lose."""
    return cast(Tensor, cast(Any, norm).act(cast(Any, norm).drop(normalized)))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """In training, (N, C, H, W) by the mean and variance over N, H and W of all processes."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        dims, shape = (0, 2, 3), (1, -1, 1, 1)
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        count = _summed(x.new_tensor(float(x[:, 0].numel())))
        mean = _summed(x.sum(dims)) / count
        centered = x - mean.view(shape)
        variance = _summed(centered.square().sum(dims)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(features.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum over all processes. The loss of each depends on it, so gradients are summed likewise."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004 - autograd passes it
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004 - autograd passes it
        return _summed(gradient.contiguous())


def _summed(tensor: Tensor) -> Tensor:
    return cast(Tensor, cast(Any, _Sum).apply(tensor))
