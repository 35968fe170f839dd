"""Both affinities against Eqs. 2 and 3 as written: everything at full size, concatenated, channel by channel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddsm_zoo.layers import ChannelAffinity, SpatialAffinity, affinity
from tests.support import brute_force

CHANNELS = 6
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
SIZES = pytest.mark.parametrize(
    ("low_size", "high_size"), [((7, 5), (3, 2)), ((1, 1), (1, 1)), ((3, 4), (5, 7)), ((6, 1), (1, 3))]
)


def trained(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """As if trained: nothing is zero any more, and the offsets are some pixels."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.to(dtype)


def features(low_size: tuple[int, int], high_size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(2, CHANNELS, *low_size, dtype=dtype), torch.randn(2, CHANNELS, *high_size, dtype=dtype)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def back_to_low(out: nn.Conv2d, aggregated: Tensor) -> Tensor:
    """The 1 x 1 convolution back to C."""
    return torch.einsum("oc,nchw->nohw", out.weight.flatten(1), aggregated) + out.bias[:, None, None]


def spatial_affinity(module: SpatialAffinity, low: Tensor, high: Tensor) -> Tensor:
    """Eq. 2: add position maps, upsample, concatenate, project, sample, aggregate, in this order."""
    size = (low.shape[2], low.shape[3])

    def position_map(tables: nn.Module, like: Tensor) -> Tensor:
        tables = (tables.rows[:, :, None] + tables.columns[:, None, :])[None]
        return upsample(tables, (like.shape[2], like.shape[3]))

    low = low + position_map(module.low_position, low)
    high = upsample(high + position_map(module.high_position, high), size)  # Fig. 3a adds e_ph before `up`
    w_theta, w_phi_low = module.low_projection.weight.chunk(2)
    b_theta, b_phi_low = module.low_projection.bias.chunk(2)
    w_phi_high, w_g = module.high_projection.weight.chunk(2)
    b_phi_high, b_g = module.high_projection.bias.chunk(2)
    query = F.conv2d(low, w_theta, b_theta)
    key = F.conv2d(torch.cat((low, high), 1), torch.cat((w_phi_low, w_phi_high), 1), b_phi_low + b_phi_high)
    value = F.conv2d(high, w_g, b_g)
    prediction = F.conv2d(key / math.sqrt(key.shape[1]), module.sampler.predict.weight, module.sampler.predict.bias)
    taps = prediction.shape[1] // 3
    offset, modulation = prediction[:, : 2 * taps], prediction[:, 2 * taps :].sigmoid()
    aggregated = brute_force.sampled_attention(query, key, value, offset, modulation, math.isqrt(taps))
    return back_to_low(module.out, aggregated)


@DTYPES
@SIZES
@pytest.mark.parametrize("samples", [9, 25])
def test_spatial_affinity_is_equation_2(
    dtype: torch.dtype, tolerance: float, low_size: tuple[int, int], high_size: tuple[int, int], samples: int
) -> None:
    module = trained(SpatialAffinity(CHANNELS, samples=samples, width=4, positions=7), torch.float64)
    low, high = features(low_size, high_size, torch.float64)
    expected = spatial_affinity(module, low, high)
    actual = module.to(dtype)(low.to(dtype), high.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


def channel_affinity(module: ChannelAffinity, low: Tensor, high: Tensor) -> Tensor:
    """Eq. 3 for each image and each channel in turn, its logits divided by ``a`` (docs/method.md says why)."""
    low_pooled = F.adaptive_avg_pool2d(low, module.pool)
    high_pooled = F.adaptive_avg_pool2d(high, module.pool)
    alpha = F.conv2d(low_pooled, module.alpha.weight, module.alpha.bias).flatten(2).numpy()  # (N, c, a*a)
    beta = F.conv2d(torch.cat((low_pooled, high_pooled), 1), module.beta.weight, module.beta.bias).flatten(2).numpy()
    small = upsample(high, (16, 16))  # Fig. 3b: the value is downsampled, not pooled
    gamma = F.conv2d(small, module.gamma.weight, module.gamma.bias).flatten(2).numpy()  # (N, c, 256)
    weight = module.sampler.predict.weight.flatten(1).numpy()
    bias = module.sampler.predict.bias.numpy()
    taps = len(bias) // 3
    radius = math.isqrt(taps) // 2
    channels = alpha.shape[1]
    side = math.isqrt(channels)
    out = np.empty_like(gamma)
    for image, channel in itertools.product(range(len(alpha)), range(channels)):
        prediction = weight @ beta[image, channel] / module.pool + bias
        logits, values = [], []
        for tap, (dy, dx) in enumerate(itertools.product(range(-radius, radius + 1), repeat=2)):
            y = channel // side + dy + 1.5 * math.tanh(prediction[2 * tap] / 1.5)
            x = channel % side + dx + 1.5 * math.tanh(prediction[2 * tap + 1] / 1.5)
            strength = 1 / (1 + math.exp(-prediction[2 * taps + tap]))
            shares = [  # of each channel, where it stands in the image of channels
                strength * max(0, 1 - abs(y - other // side)) * max(0, 1 - abs(x - other % side))
                for other in range(channels)
            ]
            logits.append(alpha[image, channel] @ (shares @ beta[image]) / module.pool)
            values.append(shares @ gamma[image])
        powers = np.exp(np.array(logits) - max(logits))
        out[image, channel] = powers / powers.sum() @ np.array(values)
    aggregated = torch.from_numpy(out).unflatten(2, (16, 16))
    return upsample(back_to_low(module.out, aggregated), (low.shape[2], low.shape[3]))


@DTYPES
@SIZES
def test_channel_affinity_is_equation_3(
    dtype: torch.dtype, tolerance: float, low_size: tuple[int, int], high_size: tuple[int, int]
) -> None:
    module = trained(ChannelAffinity(CHANNELS, samples=9, width=16, pool=3), torch.float64).requires_grad_(False)
    low, high = features(low_size, high_size, torch.float64)
    expected = channel_affinity(module, low, high)
    actual = module.to(dtype)(low.to(dtype), high.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


def test_upsampling_in_float32_amid_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As autocast does it on a GPU."""
    for name in ("resize", "stretch"):
        kept = getattr(affinity, name)
        monkeypatch.setattr(affinity, name, lambda maps, size, kept=kept: kept(maps.float(), size))
    module = trained(SpatialAffinity(CHANNELS, samples=9, width=4, positions=5), torch.float32)
    low, high = features((7, 5), (3, 2), torch.float32)
    expected = module(low, high)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(low, high)
    torch.testing.assert_close(out.float(), expected, atol=0.1 * float(expected.detach().abs().max()), rtol=0)


def test_position_tells_pixels_of_one_color_apart() -> None:
    """On flat features only the position maps differ from pixel to pixel."""
    module = trained(SpatialAffinity(CHANNELS, samples=1, width=4, positions=7), torch.float64)
    module.sampler = type(module.sampler)(4, 1).double()  # one tap at the pixel itself
    low, high = torch.ones(1, CHANNELS, 4, 4).double(), torch.ones(1, CHANNELS, 2, 2).double()
    out = module(low, high).flatten(2)[0].T  # (16, C)
    distances = torch.cdist(out, out) + torch.eye(16)
    assert distances.min() > 1e-3
