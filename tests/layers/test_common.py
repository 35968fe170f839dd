"""The blocks that everything is made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddsm_zoo.layers import ConvNormAct, crop, resize
from ddsm_zoo.layers.common import BatchNorm2d, average


def with_statistics(channels: int) -> BatchNorm2d:
    norm = BatchNorm2d(channels)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_one_value_per_channel_is_normalized_by_the_running_statistics() -> None:
    norm = with_statistics(3)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = torch.randn(1, 3, 1, 1, requires_grad=True)
    out = norm.train()(x)
    assert all(tensor.equal(before[name]) for name, tensor in norm.state_dict().items())
    torch.testing.assert_close(out, norm.eval()(x))
    out.sum().backward()
    assert x.grad.ne(0).all()


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 1, 2), (1, 3, 4, 5)])
def test_otherwise_batch_norm_is_torchs(shape: tuple[int, ...]) -> None:
    norm, reference = with_statistics(3), nn.BatchNorm2d(3)
    reference.load_state_dict(norm.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm.state_dict(), reference.state_dict())  # running statistics move alike


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 4)])
def test_convolution_blocks_keep_the_size(kernel_size: int, dilation: int, separable: bool) -> None:
    module = ConvNormAct(4, 6, kernel_size, dilation=dilation, separable=separable)
    out = module(torch.randn(2, 4, 5, 7))
    assert out.shape == (2, 6, 5, 7)
    assert out.min() == 0  # ReLU
    assert ConvNormAct(4, 6, kernel_size, act=False)(torch.randn(2, 4, 5, 7)).min() < 0


def test_separable_splits_only_what_is_wider_than_one() -> None:
    def weights(kernel_size: int) -> int:
        module = ConvNormAct(4, 6, kernel_size, separable=True)
        return sum(p.numel() for p in module.parameters()) - 2 * 6  # the normalization's

    assert weights(3) == 4 * 9 + 4 * 6
    assert weights(1) == 4 * 6


def test_resize_is_centered() -> None:
    """``align_corners=False``: a map twice as large has its samples a quarter pixel off the centers."""
    ramp = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(resize(ramp, (1, 4)).flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))
    assert resize(ramp, (1, 2)) is ramp


def test_what_is_traced_averages_and_crops_as_the_eager_layers_do() -> None:
    """One graph for all sizes, also those at which a resize would have nothing to do."""
    graphs: list[torch.fx.GraphModule] = []

    def remember(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def layers(features: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        averages = tuple(average(features, cells) for cells in (1, 2, 3, 6, 16))
        return *averages, resize(features, (8, 9)), crop(features, size)

    compiled = torch.compile(layers, fullgraph=True, dynamic=True, backend=remember)
    for height, width in ((21, 40), (8, 9), (35, 16)):
        features = torch.randn(2, 3, height, width)
        for actual, expected in zip(
            compiled(features, (height - 1, width - 3)), layers(features, (height - 1, width - 3)), strict=True
        ):
            torch.testing.assert_close(actual, expected)
    assert len(graphs) == 1
