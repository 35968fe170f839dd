"""Sampled attention, both paths, against loops, torchvision's deformable convolution and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import deform_conv2d

from ddsm_zoo.ops import cpu, sampled_attention
from ddsm_zoo.ops.grid import bilinear_corners
from ddsm_zoo.ops.reference import sample
from tests import brute_force

NAMES = ("query", "key", "value", "offset", "modulation")
PATHS = pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "channels last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "one image expanded": lambda tensor: tensor[:1].expand_as(tensor),
    "one column expanded": lambda tensor: tensor[..., :1].expand_as(tensor),
    "every second column": lambda tensor: tensor.repeat_interleave(2, dim=3)[..., ::2],
    "transposed": lambda tensor: tensor.mT.contiguous().mT,
}


def random_case(
    batch: int = 2,
    key_channels: int = 3,
    value_channels: int = 5,
    size: tuple[int, int] = (4, 6),
    kernel_size: int = 3,
    *,
    spread: int = 2,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Query, key, value, offset and modulation; no tap within 0.1 of an integer, where the slope jumps."""
    taps = kernel_size**2
    whole = torch.randint(-spread, spread + 1, (batch, 2 * taps, *size))
    return [
        torch.randn(batch, key_channels, *size, dtype=dtype),
        torch.randn(batch, key_channels, *size, dtype=dtype),
        torch.randn(batch, value_channels, *size, dtype=dtype),
        whole + 0.1 + 0.8 * torch.rand(batch, 2 * taps, *size, dtype=dtype),
        torch.rand(batch, taps, *size, dtype=dtype),
    ]


def outputs_and_gradients(tensors: list[Tensor], kernel_size: int, backend: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = sampled_attention(*leaves, kernel_size=kernel_size, backend=backend)
    upstream = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return out.detach(), torch.autograd.grad(out, leaves, upstream)


def assert_same(actual: tuple[Tensor, tuple[Tensor, ...]], expected: tuple[Tensor, tuple[Tensor, ...]]) -> None:
    """Outputs within 1e-4, gradients within a thousandth of the largest."""
    torch.testing.assert_close(actual[0].double(), expected[0].double(), atol=1e-4, rtol=1e-4)
    for name, gradient, target in zip(NAMES, actual[1], expected[1], strict=True):
        error = (gradient.double() - target.double()).abs().max()
        assert error <= 1e-3 * target.abs().max() + 1e-6, f"gradient of {name} is off by {error}"


@PATHS
@pytest.mark.parametrize(
    ("size", "kernel_size", "spread"), [((4, 6), 3, 2), ((1, 1), 3, 1), ((5, 1), 1, 3), ((3, 4), 5, 0), ((2, 7), 3, 20)]
)
def test_loops_over_positions_and_taps(backend: str, size: tuple[int, int], kernel_size: int, spread: int) -> None:
    tensors = random_case(size=size, kernel_size=kernel_size, spread=spread)
    expected = brute_force.sampled_attention(*tensors, kernel_size)
    dtype, tolerance = (torch.float64, 1e-12) if backend == "reference" else (torch.float32, 1e-5)
    actual = sampled_attention(*(tensor.to(dtype) for tensor in tensors), kernel_size=kernel_size, backend=backend)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=0)


@PATHS
def test_whole_pixel_offsets_read_pixels_exactly(backend: str) -> None:
    """On the grid, at the border and just outside: the places where a neighbour's weight is exactly 0 or 1."""
    query, key, value, offset, modulation = random_case(size=(3, 4), dtype=torch.float32)
    offset = torch.randint(-3, 4, offset.shape).float()
    expected = brute_force.sampled_attention(query, key, value, offset, modulation, 3)
    actual = sampled_attention(query, key, value, offset, modulation, kernel_size=3, backend=backend)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "kernel_size", "spread"), [((5, 6), 3, 1), ((4, 3), 5, 9), ((1, 8), 1, 4)])
def test_sampling_is_a_deformable_convolution_with_one_hot_kernels(
    size: tuple[int, int], kernel_size: int, spread: int
) -> None:
    _, _, features, offset, modulation = (
        tensor.requires_grad_() for tensor in random_case(size=size, kernel_size=kernel_size, spread=spread)
    )
    channels, taps = features.shape[1], kernel_size**2
    one_hot = torch.eye(taps, dtype=torch.float64).view(taps, 1, kernel_size, kernel_size).repeat(channels, 1, 1, 1)
    expected = deform_conv2d(features, offset, one_hot, padding=kernel_size // 2, mask=modulation)
    expected = expected.view(len(features), channels, taps, *size)
    actual = sample(features, offset, modulation, kernel_size)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    inputs = (features, offset, modulation)
    for gradient, target in zip(
        torch.autograd.grad(actual, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(gradient, target)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_finite_differences_of_the_reference(kernel_size: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in random_case(1, 2, 2, (2, 3), kernel_size, spread=1)]

    def run(*inputs: Tensor) -> Tensor:
        return sampled_attention(*inputs, kernel_size=kernel_size, backend="reference")

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_gradients_of_the_fast_paths(backend: str, kernel_size: int) -> None:
    tensors = random_case(2, 7, 3, (6, 5), kernel_size, spread=3, dtype=torch.float32)
    actual = outputs_and_gradients(tensors, kernel_size, backend)
    assert_same(actual, outputs_and_gradients([tensor.double() for tensor in tensors], kernel_size, "reference"))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel_size=st.sampled_from([1, 3, 5]),
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * len(NAMES)),
)
def test_the_paths_agree_on_any_shape_and_layout(
    seed: int,
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel_size: int,
    layouts: tuple[str, ...],
) -> None:
    torch.manual_seed(seed)
    plain = random_case(batch, *channels, size, kernel_size, dtype=torch.float32)
    tensors = [LAYOUTS[layout](tensor) for layout, tensor in zip(layouts, plain, strict=True)]
    expected = outputs_and_gradients([tensor.double().contiguous() for tensor in tensors], kernel_size, "reference")
    for backend in ("cpu", "reference", "triton"):
        assert_same(outputs_and_gradients(tensors, kernel_size, backend), expected)


def test_chunks_of_positions_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of any size go through the CPU path piece by piece; here in pieces of 7 of 60 positions."""
    monkeypatch.setattr(cpu, "CHUNK", 7 * 4 * 9)
    tensors = random_case(2, 7, 3, (6, 5), 3, spread=9, dtype=torch.float32)
    actual = outputs_and_gradients(tensors, 3, "cpu")
    assert_same(actual, outputs_and_gradients([tensor.double() for tensor in tensors], 3, "reference"))


@PATHS
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_a_sample_far_outside_is_zero(backend: str, axis: int, offset: float) -> None:
    tensors = random_case(dtype=torch.float32)
    lost = torch.rand(2, 9, 4, 6) < 0.3  # some taps of some positions
    outcomes = []
    for distance in (offset, 1000.0):  # the loops and torchvision agree that 1000 pixels away all is 0
        moved = tensors[3].clone()
        moved[:, axis::2][lost] = distance
        outcomes.append(outputs_and_gradients([*tensors[:3], moved, tensors[4]], 3, backend))
    (out, gradients), (expected_out, expected_gradients) = outcomes
    assert out.isfinite().all()
    torch.testing.assert_close(out, expected_out, atol=1e-6, rtol=0)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)  # fails on NaN too
    assert gradients[3][:, axis::2][lost].eq(0).all()


@PATHS
def test_nothing_inside_gives_zero(backend: str) -> None:
    query, key, value, offset, modulation = random_case(size=(1, 1), dtype=torch.float32)
    offset.fill_(math.nan)
    assert sampled_attention(query, key, value, offset, modulation, kernel_size=3, backend=backend).eq(0).all()


def test_half_precision_finds_the_right_pixel() -> None:
    """bfloat16 has no 257: a position computed in it would be its neighbour's."""
    value = torch.randn(1, 2, 1, 600).bfloat16()
    offset, modulation = torch.zeros(1, 2, 1, 600).bfloat16(), torch.ones(1, 1, 1, 600).bfloat16()
    out = sampled_attention(value, value, value, offset, modulation, kernel_size=1)
    assert out.dtype == torch.bfloat16
    assert out.equal(value)


def test_maps_of_more_pixels_than_float32_can_count() -> None:
    height, width = 5000, 5001
    last = [torch.full((1, 1, 1, 1), float(side - 1)) for side in (height, width)]
    index, weight, _, _ = bilinear_corners(*last, (height, width))
    assert index[weight > 0].tolist() == [height * width - 1]


def test_auto_takes_any_floating_point_dtype() -> None:
    tensors = random_case()
    expected = sampled_attention(*tensors, kernel_size=3, backend="reference")
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        out = sampled_attention(*(tensor.to(dtype) for tensor in tensors), kernel_size=3)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)


def test_auto_exports_to_plain_operators() -> None:
    class Attention(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return sampled_attention(*tensors, kernel_size=3)

    tensors = tuple(random_case(dtype=torch.float32))
    exported = torch.export.export(Attention(), tensors, strict=False)
    assert "embedding_bag" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(*tensors), Attention()(*tensors), atol=1e-5, rtol=0)


def allocations(backend: str, tensors: list[Tensor], *, backward: bool) -> list[int]:
    """Sizes in bytes of all that is allocated (or, negative, freed) on the way, in order of time."""
    leaves = [tensor.detach().requires_grad_(backward) for tensor in tensors]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = sampled_attention(*leaves, kernel_size=5, backend=backend)
        if backward:
            out.backward(torch.ones_like(out))
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@pytest.mark.parametrize("backward", [False, True])
def test_the_cpu_path_never_holds_the_sampled_features(backward: bool) -> None:
    channels, taps, size = 64, 25, (10, 10)
    tensors = random_case(1, channels, channels, size, 5, dtype=torch.float32)
    positions = math.prod(size)
    sampled_bytes = 4 * positions * channels * taps
    # the measure sees the (N, C, K, H, W) tensors of the reference
    assert max(allocations("reference", tensors, backward=backward)) >= sampled_bytes
    # a 64-bit index for each of the four corners is the largest thing allowed
    assert max(allocations("cpu", tensors, backward=backward)) <= 8 * 4 * positions * taps < sampled_bytes / 4


def shaped(**shapes: tuple[int, ...]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {name: torch.zeros(shape) for name, shape in shapes.items()}


def without_pixels(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:, :, :0] for name, tensor in tensors.items()}


@PATHS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shaped(query=(2, 3, 4)), r"query has shape \(2, 3, 4\), expected 4 dimensions \(N, C, H, W\)"),
        (shaped(offset=(2, 18, 4, 6, 1)), r"offset has shape .*expected 4 dimensions"),
        (shaped(query=(1, 3, 4, 6)), r"query has shape \(1, 3, 4, 6\), expected \(2, 3, 4, 6\)"),
        (shaped(key=(2, 4, 4, 6)), r"key has shape \(2, 4, 4, 6\), expected \(2, 3, 4, 6\)"),
        (shaped(key=(2, 3, 5, 6)), r"key has shape \(2, 3, 5, 6\), expected \(2, 3, 4, 6\)"),
        (shaped(value=(2, 5, 4, 7)), r"query has shape \(2, 3, 4, 6\), expected \(2, 3, 4, 7\)"),
        (shaped(offset=(2, 9, 4, 6)), r"offset has shape \(2, 9, 4, 6\), expected \(2, 18, 4, 6\).*kernel_size 3"),
        (shaped(modulation=(2, 9, 4, 5)), r"modulation has shape \(2, 9, 4, 5\), expected \(2, 9, 4, 6\)"),
        (shaped(query=(2, 0, 4, 6), key=(2, 0, 4, 6)), r"query \(2, 0, 4, 6\) must not be empty"),
        (without_pixels, r"value \(2, 5, 0, 6\).*must not be empty"),
        (lambda tensors: tensors | {"key": tensors["key"].double()}, r"key is torch.float64 and value torch.float32"),
        (lambda tensors: {n: t.int() for n, t in tensors.items()}, r"query is torch.int32.*floating-point"),
        (lambda tensors: tensors | {"offset": tensors["offset"].to("meta")}, r"offset is on meta and value on cpu"),
    ],
)
def test_tensors_that_do_not_fit(
    backend: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    tensors = change(dict(zip(NAMES, random_case(dtype=torch.float32), strict=True)))
    with pytest.raises(ValueError, match=message):
        sampled_attention(**tensors, kernel_size=3, backend=backend)


@pytest.mark.parametrize("kernel_size", [-1, 0, 2, 4])
def test_kernel_sizes_without_a_centre(kernel_size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size is {kernel_size}, expected an odd number"):
        sampled_attention(*random_case(), kernel_size=kernel_size)


def test_backends_that_cannot_run() -> None:
    tensors = random_case()
    with pytest.raises(ValueError, match="backend is 'cuda', expected one of 'auto'"):
        sampled_attention(*tensors, kernel_size=3, backend="cuda")
    with pytest.raises(ValueError, match="'cpu' takes float32 tensors on cpu, got torch.float64 on cpu; use"):
        sampled_attention(*tensors, kernel_size=3, backend="cpu")
    elsewhere = [tensor.float().to("meta") for tensor in tensors]
    with pytest.raises(ValueError, match="got torch.float32 on meta"):
        sampled_attention(*elsewhere, kernel_size=3, backend="cpu")
