"""Both halves of DDSM: affinities over sampled pixels (Eq. 2) and over sampled channels (Eq. 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddsm_zoo.layers.common import apply_linear, average, downsample, resize, stretch
from ddsm_zoo.layers.sampler import DynamicSampler
from ddsm_zoo.ops import sampled_attention


class PositionalEmbedding(nn.Module):
    """Learned embedding of every position, the sum of a row and a column table that stretch to any size."""

    def __init__(self, channels: int, positions: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(channels, positions))
        self.columns = nn.Parameter(torch.empty(channels, positions))
        nn.init.normal_(self.rows, std=0.02)
        nn.init.normal_(self.columns, std=0.02)

    def forward(self, features: Tensor, projection: nn.Module) -> Tensor:
        """Add the embeddings to (N, C, H, W) and project the sum by a 1 x 1 convolution to (N, D, H, W).

        The convolution commutes with adding and stretching. Tables and features are projected apart, so no map of the
        larger width is written.
        """
        height, width = features.shape[-2], features.shape[-1]
        projected: Tensor = projection(features)
        # the tables as columns of one map, without the bias, which the features already have
        tables = torch.cat((self.rows, self.columns), dim=1)[None, :, None]
        added, count = apply_linear(projection, tables), self.rows.shape[1]
        # in the map's dtype: autocast may stretch in float32, and the sum would be a map of float32
        rows = stretch(added[..., :count].transpose(2, 3), (height, 1)).to(projected.dtype)  # (1, D, H, 1)
        columns = stretch(added[..., count:], (1, width)).to(projected.dtype)  # (1, D, 1, W)
        # in place: nothing else holds the first sum
        return (projected + rows).add_(columns)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the tables, since nothing makes zero a good value for them."""
        return {"rows", "columns"}


class SpatialAffinity(nn.Module):
    """Spatial-wise dynamic affinity modeling (Eq. 2): each low position gathers N sampled high positions.

    Args:
        channels: Channels of low and high.
        samples: N of Eq. 2, the square of an odd number.
        width: Channels of query, key and value.
        positions: Length of the tables of positional embeddings.
    """

    def __init__(self, channels: int, *, samples: int, width: int, positions: int) -> None:
        super().__init__()
        self.low_position = PositionalEmbedding(channels, positions)
        self.high_position = PositionalEmbedding(channels, positions)
        # W_phi of a concatenation is the sum of its two halves, so each input is projected once:
        # low by W_theta and the first half of W_phi, high by the second half and W_g.
        self.low_projection = nn.Conv2d(channels, 2 * width, 1)
        self.high_projection = nn.Conv2d(channels, 2 * width, 1)
        self.sampler = DynamicSampler(width, samples)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Compute x_Sout.

        Args:
            low: Low-level features (N, C, H, W).
            high: High-level features (N, C, h, w).

        Returns:
            x_Sout (N, C, H, W).
        """
        query, key, value = self.project(low, high)
        offset, modulation = self.sampler(key)
        out = sampled_attention(query, key, value, offset, modulation, kernel_size=self.sampler.kernel_size)
        projected: Tensor = self.out(out)
        return projected

    def project(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the query x_l^theta, key x_cat^phi and value x_h^g, each (N, width, H, W)."""
        size = (low.shape[-2], low.shape[-1])
        from_low = self.low_position(low, self.low_projection)
        # 1 x 1 convolutions commute with the upsampling: high is projected while it is small
        from_high = self.high_position(high, self.high_projection)
        query, low_key = from_low.chunk(2, dim=1)
        # each on its own, so that neither is a slice of a larger map; autocast may upsample in float32
        high_key, value = (resize(half, size).to(from_low.dtype) for half in from_high.chunk(2, dim=1))
        # copied first: torch adds slices in half precision four times slower
        return query, low_key.clone().add_(high_key), value


class ChannelAffinity(nn.Module):
    """Channel-wise dynamic affinity modeling (Eq. 3): each low channel gathers N_c sampled high channels.

    The ``width`` = c channels form a sqrt(c) x sqrt(c) image, whose pixels the dynamic sampler picks. A channel's query
    and key are its ``pool`` x ``pool`` pooled responses. Its value is its map, downsampled to 16 x 16. The sampler
    reads the key, and the value is sampled at the same places (Fig. 3b).

    Offsets stay below ``offset_bound`` cells. Each of 8 x 8 channels then keeps at least one of its 9 taps on the grid,
    with any weights. Even if all offsets point
    outward at their bound, 56 % of the taps stay on the grid.

    Deviation from the paper: the logits are divided by ``pool``, the square root of the features' length. Without it
    the softmax starts almost one-hot and its gradients drown all others (docs/method.md).

    Args:
        channels: Channels of low and high.
        samples: N_c of Eq. 3, the square of an odd number.
        width: c of Eq. 3, a square number.
        pool: Side a of the pooled responses.
    """

    value_size = 16
    offset_bound = 1.5

    def __init__(self, channels: int, *, samples: int, width: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.grid = math.isqrt(width)
        self.alpha = nn.Conv2d(channels, width, 1)
        self.beta = nn.Conv2d(2 * channels, width, 1)
        self.gamma = nn.Conv2d(channels, width, 1)
        self.sampler = DynamicSampler(pool**2, samples, bound=self.offset_bound)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Compute x_Cout.

        Args:
            low: Low-level features (N, C, H, W).
            high: High-level features (N, C, h, w).

        Returns:
            x_Cout (N, C, H, W).
        """
        low_pooled = average(low, self.pool)
        high_pooled = average(high, self.pool)
        query = _swap(self.alpha(low_pooled), self.grid) / self.pool  # (N, a*a, sqrt c, sqrt c)
        key = _swap(self.beta(torch.cat((low_pooled, high_pooled), dim=1)), self.grid)
        value = _swap(self.gamma(downsample(high, self.value_size)), self.grid)  # (N, 256, sqrt c, sqrt c)
        offset, modulation = self.sampler(key)
        out = sampled_attention(query, key, value, offset, modulation, kernel_size=self.sampler.kernel_size)
        maps = _swap(out, self.value_size)  # (N, c, 16, 16)
        return stretch(self.out(maps), (low.shape[-2], low.shape[-1]))


def _swap(features: Tensor, side: int) -> Tensor:
    """Swap channels and pixels, (N, C, s, s) -> (N, s*s, side, side): the C = side*side channels become the pixels."""
    assert features.shape[1] == side * side
    pixels = features.flatten(2).transpose(1, 2)  # (N, s*s, C)
    return pixels.reshape(features.shape[0], pixels.shape[1], side, side)
