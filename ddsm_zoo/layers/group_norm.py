"""Group norm as a replacement for batch norm, independent of the batch."""

from __future__ import annotations

from torch import Tensor, nn

# As many groups as Wu and He (ECCV 2018) use, if each has this many channels. Smaller groups have poor statistics
# on a map of a single cell, as in the pooled branches.
_GROUPS = (32, 16, 8, 4, 2, 1)
_CHANNELS = 8


class GroupNorm2d(nn.GroupNorm):
    """Group norm with the weight and bias of a batch norm, and the dropout and activation inside timm's batch norms."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        channels = norm.num_features
        groups = next(n for n in _GROUPS if n == 1 or (channels % n == 0 and channels // n >= _CHANNELS))
        super().__init__(groups, channels, eps=norm.eps, affine=norm.affine)
        self._parameters.update(norm._parameters)
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, features: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(features)))
        return activated


def use_group_norm(model: nn.Module) -> None:
    """Replace every batch norm below ``model`` by a group norm with the same weight and bias."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, GroupNorm2d(child))
        else:
            use_group_norm(child)
