"""Sampled attention, all paths, against loops, torchvision's deformable convolution and finite differences."""

from __future__ import annotations

import io
import math

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
from tests.support import brute_force
from tests.support.attention_cases import LAYOUTS, NAMES, PATHS, assert_same, outputs_and_gradients, random_case


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
    """On the grid, at the border and just outside: the places where a neighbor's weight is exactly 0 or 1."""
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


@settings(max_examples=15)
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


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("channels", [(1, 3), (3, 1), (48, 65), (65, 48)])
def test_channels_that_fill_no_block(backend: str, channels: tuple[int, int]) -> None:
    tensors = random_case(2, *channels, (3, 4), 3, dtype=torch.float32)
    tensors[0] /= channels[0] ** 0.5  # logits of unit size, whatever the width
    actual = outputs_and_gradients(tensors, 3, backend)
    assert_same(actual, outputs_and_gradients([tensor.double() for tensor in tensors], 3, "reference"))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_is_rounded_only_at_the_end(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """The fast paths compute in float32, so what is left is the rounding of their results."""
    tensors = [tensor.to(dtype) for tensor in random_case(2, 6, 5, (4, 5), dtype=torch.float32)]
    out, gradients = outputs_and_gradients(tensors, 3, backend)
    expected, targets = outputs_and_gradients([tensor.double() for tensor in tensors], 3, "reference")
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    for gradient, target in zip(gradients, targets, strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - target).abs().max() <= tolerance * target.abs().max()


@PATHS
def test_half_precision_finds_the_right_pixel(backend: str) -> None:
    """bfloat16 has no 257: a position computed in it would be its neighbor's."""
    value = torch.randn(1, 2, 1, 600).bfloat16()
    offset, modulation = torch.zeros(1, 2, 1, 600).bfloat16(), torch.ones(1, 1, 1, 600).bfloat16()
    out = sampled_attention(value, value, value, offset, modulation, kernel_size=1, backend=backend)
    assert out.dtype == torch.bfloat16
    assert out.equal(value)


@pytest.mark.parametrize(
    ("batch", "side", "taps"), [(1, 4096, 25), (3, 4096, 9), (127, 4096, 1), (129, 4096, 1), (1, 46341, 9)]
)
def test_rows_of_large_maps_are_counted_without_overflow(batch: int, side: int, taps: int) -> None:
    """The last positions of maps that no test can hold: up to and beyond what 32 bits count."""
    positions = batch * side * side
    offset_rows = torch.zeros(1, 2 * taps).expand(positions, -1)
    kernel_size = math.isqrt(taps)
    chunk = cpu._chunk(slice(positions - 3, positions), offset_rows, kernel_size, (batch, side, side))
    assert chunk.index.long().max() == positions - 1
    center = chunk.index[:, 0, taps // 2].tolist()  # the first corner of the middle tap is the position itself
    assert center == [positions - 3, positions - 2, positions - 1]
    assert chunk.index.long().min() >= positions - (kernel_size + 1) * side


def test_maps_of_more_pixels_than_float32_can_count() -> None:
    height, width = 5000, 5001
    last = [torch.full((1, 1, 1, 1), float(side - 1)) for side in (height, width)]
    index, weight = bilinear_corners(*last, (height, width))
    assert index[weight > 0].tolist() == [height * width - 1]


def test_auto_takes_any_floating_point_dtype() -> None:
    tensors = random_case()
    expected = sampled_attention(*tensors, kernel_size=3, backend="reference")
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        out = sampled_attention(*(tensor.to(dtype) for tensor in tensors), kernel_size=3)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)


@PATHS
@pytest.mark.parametrize("broken", [False, True])
def test_autocast_leaves_the_dtype_to_value(backend: str, broken: bool) -> None:
    tensors = [tensor.requires_grad_() for tensor in random_case(dtype=torch.float32)]
    with torch.no_grad():
        tensors[2][0, 0, 0, 0] = math.nan if broken else 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sampled_attention(*tensors, kernel_size=3, backend=backend)
        gradients = torch.autograd.grad(out.sum(), tensors, create_graph=True)
    assert {tensor.dtype for tensor in (out, *gradients)} == {torch.float32}
    exact = sampled_attention(*(tensor.double() for tensor in tensors), kernel_size=3)
    torch.testing.assert_close(out.double(), exact, atol=0.3, rtol=0, equal_nan=True)


def test_another_default_device_changes_nothing() -> None:
    tensors = random_case(dtype=torch.float32)
    expected = outputs_and_gradients([tensor.double() for tensor in tensors], 3, "reference")
    leaves = [tensor.requires_grad_() for tensor in tensors]
    upstream = torch.linspace(-1, 2, expected[0].numel()).view(expected[0].shape)
    with torch.device("meta"):
        out = sampled_attention(*leaves, kernel_size=3)
        gradients = torch.autograd.grad(out, leaves, upstream)
    assert_same((out.detach(), gradients), expected)


class Attention(torch.nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return sampled_attention(*tensors, kernel_size=3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_auto_is_traced_to_what_can_be_saved() -> None:
    tensors = tuple(random_case(dtype=torch.float32))
    saved = io.BytesIO()
    torch.jit.save(torch.jit.trace(Attention(), tensors), saved)
    saved.seek(0)
    torch.testing.assert_close(torch.jit.load(saved)(*tensors), Attention()(*tensors), atol=1e-5, rtol=0)


def test_auto_exports_to_plain_operators() -> None:
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
