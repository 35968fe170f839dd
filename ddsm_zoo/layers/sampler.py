"""Dynamic sampler F of Eq. 1, and statistics of its taps on the map."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddsm_zoo.ops.grid import sampling_positions


class OffsetConv2d(nn.Conv2d):
    """Convolution that predicts the sampling offsets of K = kernel**2 taps in its first 2K channels.

    It starts at zero, the plain grid, as in DCN. Optimizers give it its own learning rate, see
    `training.recipe.Recipe`. ``bound`` smoothly limits offsets to this many pixels. None does not limit them.
    """

    def __init__(
        self, in_channels: int, taps: int, *, modulated: bool, kernel_size: int = 1, bound: float | None = None
    ) -> None:
        super().__init__(in_channels, (3 if modulated else 2) * taps, kernel_size, padding=kernel_size // 2)
        self.taps = taps
        self.bound = bound
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Predict offsets (N, 2K, H, W) in pixels, (dy, dx) per tap, from (N, C, H, W); if modulated, K more logits."""
        out = super().forward(features)
        if self.bound is None:
            return out
        offset, rest = out[:, : 2 * self.taps], out[:, 2 * self.taps :]
        return torch.cat((self.bound * torch.tanh(offset / self.bound), rest), dim=1)


class DynamicSampler(nn.Module):
    """Predict, for each position of a feature map, the locations and strengths of ``samples`` taps (Eq. 1).

    A 1 x 1 convolution predicts an offset in pixels and a modulation per tap of the k x k grid. It starts at zero: the
    plain grid, every tap at modulation 1/2, as in DCNv2.

    The convolution reads the features divided by the square root of their number. Adam changes each weight by about the
    learning rate, whatever its gradient, so without the scale one step changes an offset by the rate times the sum of
    the features.

    Taps that leave the map read zeros and have no gradient to bring them back (docs/method.md).

    Args:
        channels: Channels of the features.
        samples: Taps per position, K = k * k.
        bound: Limit of the offsets in pixels, which keeps taps near on small maps. None for no limit.
    """

    def __init__(self, channels: int, samples: int, *, bound: float | None = None) -> None:
        super().__init__()
        self.samples = samples
        self.kernel_size = math.isqrt(samples)
        self.scale = 1 / math.sqrt(channels)
        self.predict = OffsetConv2d(channels, samples, modulated=True, bound=bound)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Predict offsets and modulations.

        Args:
            features: Feature map (N, C, H, W).

        Returns:
            Offsets (N, 2K, H, W) in pixels, (dy, dx) per tap, and modulations (N, K, H, W) from 0 to 1.
        """
        offset, modulation = self.predict(features * self.scale).split((2 * self.samples, self.samples), dim=1)
        return offset, modulation.sigmoid()


@dataclass
class TapCounts:
    """Tap counts of one sampler, over all images it has processed.

    ``inside`` of ``taps`` read at least one pixel of the map, ``grid`` would without offsets. ``blind`` of
    ``positions`` have no tap on the map. ``moved`` adds up |dy| and |dx| of all taps, in pixels. A sampler that never
    moves a tap, or whose offsets are all at their bound, has its taps on the map and yet learns nothing.
    """

    taps: int = 0
    inside: int = 0
    grid: int = 0
    positions: int = 0
    blind: int = 0
    moved: float = 0.0

    @classmethod
    def of(cls, counts: Mapping[str, float]) -> TapCounts:
        """Build the counts from their `dataclasses.asdict`, which may be summed over processes."""
        whole: dict[str, Any] = {name: int(count) for name, count in counts.items() if name != "moved"}
        return cls(**whole, moved=counts.get("moved", 0.0))

    def add(self, offset: Tensor) -> None:
        """Count the taps of offsets (N, 2K, H, W), (dy, dx) per tap, in pixels."""
        inside = _inside(offset)
        self.taps += inside.numel()
        self.inside += int(inside.sum())
        self.grid += len(offset) * int(_inside(torch.zeros_like(offset[:1])).sum())
        self.positions += inside.numel() // inside.shape[1]
        self.blind += int((~inside.any(dim=1)).sum())
        self.moved += float(offset.abs().sum(dtype=torch.float64))

    @property
    def on_map(self) -> float:
        """Share of the taps that read the map."""
        return self.inside / max(1, self.taps)

    @property
    def blind_share(self) -> float:
        """Share of the positions none of whose taps read the map."""
        return self.blind / max(1, self.positions)

    @property
    def mean_offset(self) -> float:
        """Mean of |dy| and |dx|, in pixels of the map."""
        return self.moved / max(1, 2 * self.taps)

    @property
    def kept(self) -> float:
        """Taps on the map divided by those of the plain grid. Below 1, offsets lead off the map."""
        return self.inside / max(1, self.grid)


@contextmanager
def watch_taps(model: nn.Module) -> Iterator[dict[str, TapCounts]]:
    """Count the taps of every sampler of ``model`` that runs inside the block, by the name of its owner module.

    A model without samplers gives an empty dict.
    """
    counts: dict[str, TapCounts] = {}

    def count(name: str, module: OffsetConv2d, _inputs: object, output: Tensor) -> None:
        counts.setdefault(name, TapCounts()).add(output.detach()[:, : 2 * module.taps])

    with ExitStack() as handles:
        for name, module in model.named_modules():
            if isinstance(module, OffsetConv2d):
                owner = re.sub(r"(^|\.)(sampler\.)?(predict|offset)$", "", name)
                handles.callback(module.register_forward_hook(partial(count, owner)).remove)
        yield counts


def _inside(offset: Tensor) -> Tensor:
    """Mark taps that read at least one pixel of the map, (N, 2K, H, W) -> (N, K, H, W)."""
    height, width = offset.shape[-2:]
    y, x = sampling_positions(offset.float(), math.isqrt(offset.shape[1] // 2))
    return (y > -1) & (y < height) & (x > -1) & (x < width)
