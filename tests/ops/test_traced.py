"""Sampled attention as it is traced: the same numbers, in operations that compilers and ONNX have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from ddsm_zoo.ops import reference, sampled_attention, traced
from tests.support import brute_force


def random_case(size: tuple[int, int], kernel_size: int, spread: float) -> list[Tensor]:
    """Query, key, value, offset and modulation of two images."""
    taps = kernel_size**2
    maps = [torch.randn(2, channels, *size, dtype=torch.float64) for channels in (3, 3, 5)]
    offset = spread * torch.randn(2, 2 * taps, *size, dtype=torch.float64)
    return [*maps, offset, torch.rand(2, taps, *size, dtype=torch.float64)]


@pytest.mark.parametrize(
    ("size", "kernel_size", "spread"), [((4, 6), 3, 1.0), ((1, 1), 3, 0.5), ((5, 1), 1, 3.0), ((3, 4), 5, 9.0)]
)
def test_it_is_the_sum_over_taps(size: tuple[int, int], kernel_size: int, spread: float) -> None:
    tensors = random_case(size, kernel_size, spread)
    actual = traced.sampled_attention(*tensors, kernel_size)
    torch.testing.assert_close(actual, brute_force.sampled_attention(*tensors, kernel_size), atol=1e-12, rtol=0)


def test_offsets_that_are_no_numbers_read_nothing() -> None:
    tensors = random_case((4, 5), 3, 1.0)
    tensors[3][0, :6, 1, 2] = torch.tensor([torch.nan, 0, torch.inf, 0, 0, -1e30])
    actual = traced.sampled_attention(*tensors, 3)
    torch.testing.assert_close(actual, reference.sampled_attention(*tensors, 3), atol=1e-12, rtol=0)


def test_gradients_are_those_of_the_definition() -> None:
    leaves = [tensor.requires_grad_() for tensor in random_case((4, 3), 3, 1.0)]
    outputs = [path.sampled_attention(*leaves, 3) for path in (traced, reference)]
    upstream = torch.randn_like(outputs[0])
    for actual, expected in zip(*(torch.autograd.grad(out, leaves, upstream) for out in outputs), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type_and_its_place(dtype: torch.dtype) -> None:
    """Coordinates above 256 have no fraction in bfloat16; the samples must lie there all the same."""
    tensors = [tensor.to(dtype) for tensor in random_case((2, 300), 3, 1.0)]
    actual = traced.sampled_attention(*tensors, 3)
    assert actual.dtype == dtype
    expected = brute_force.sampled_attention(*tensors, 3)
    torch.testing.assert_close(actual.double(), expected, atol=0.1, rtol=0.05)


def test_what_the_taps_read_is_what_a_deformable_convolution_reads() -> None:
    features, _, _, offset, _ = random_case((5, 7), 3, 2.0)
    one_tap = torch.eye(9, dtype=torch.float64).view(9, 1, 3, 3)
    expected = [deform_conv2d(channel, offset, one_tap, padding=1) for channel in features.split(1, dim=1)]
    torch.testing.assert_close(traced.sample(features, offset, 3), torch.stack(expected, dim=1), atol=1e-12, rtol=0)


def test_a_compiled_call_takes_this_path() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def remember(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    tensors = [tensor.float() for tensor in random_case((3, 4), 5, 1.0)]
    out = torch.compile(sampled_attention, fullgraph=True, backend=remember)(*tensors, kernel_size=5)
    torch.testing.assert_close(out, reference.sampled_attention(*tensors, 5), atol=1e-5, rtol=0)
    (graph,) = graphs
    assert "grid_sample" in graph.code
