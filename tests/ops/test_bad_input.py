"""Bad input to sampled attention: a clear error or the right answer, on every path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import deform_conv2d

from ddsm_zoo.ops import sampled_attention
from ddsm_zoo.ops.reference import sample
from ddsm_zoo.ops.rows import to_rows
from tests.support.attention_cases import NAMES, PATHS, assert_same, outputs_and_gradients, random_case
from tests.support.errors import raises

FAR = [math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -(2.0**31), 2.0**63, 1e6, -1e6]
BROKEN = [math.nan, math.inf, -math.inf]


@PATHS
def test_nothing_inside_gives_zero(backend: str) -> None:
    query, key, value, offset, modulation = random_case(size=(1, 1), dtype=torch.float32)
    offset.fill_(math.nan)
    assert sampled_attention(query, key, value, offset, modulation, kernel_size=3, backend=backend).eq(0).all()


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 2),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel_size=st.sampled_from([1, 3]),
    far=st.lists(st.sampled_from(FAR), min_size=1, max_size=8),
    share=st.floats(0.05, 1),
)
def test_offsets_of_any_size(
    seed: int, batch: int, size: tuple[int, int], kernel_size: int, far: list[float], share: float
) -> None:
    """Far outside, not a number or beyond any integer: as if it were 1000 pixels away."""
    torch.manual_seed(seed)
    tensors = random_case(batch, 3, 4, size, kernel_size, dtype=torch.float32)
    lost = torch.rand(tensors[3].shape) < share
    wild, tame = tensors[3].clone(), tensors[3].masked_fill(lost, 1000.0)
    wild[lost] = torch.tensor(far)[torch.randint(len(far), (int(lost.sum()),))]
    expected = outputs_and_gradients([t.double() for t in (*tensors[:3], tame, tensors[4])], kernel_size, "reference")
    for backend in ("reference", "cpu", "triton"):
        actual = outputs_and_gradients([*tensors[:3], wild, tensors[4]], kernel_size, backend)
        assert all(tensor.isfinite().all() for tensor in (actual[0], *actual[1]))
        assert_same(actual, expected)
        assert actual[1][3][lost].eq(0).all()


def amid_nan(tensor: Tensor) -> Tensor:
    """The same values, in memory between images of NaN, so that nothing beyond them can be read unnoticed."""
    batch, channels, height, width = tensor.shape
    rows = torch.full((batch + 2, height, width, channels), math.nan)
    rows[1:-1] = tensor.permute(0, 2, 3, 1)
    return rows[1:-1].permute(0, 3, 1, 2)


@PATHS
@pytest.mark.parametrize("spread", [1, 4, 1000])
def test_nothing_beyond_the_maps_is_read(backend: str, spread: int) -> None:
    tensors = random_case(2, 3, 5, (4, 6), 3, spread=spread, dtype=torch.float32)
    surrounded = [amid_nan(tensor) for tensor in tensors]
    assert all(to_rows(tensor).data_ptr() == tensor.data_ptr() for tensor in surrounded)  # no path gets a copy
    actual = outputs_and_gradients(surrounded, 3, backend)
    assert_same(actual, outputs_and_gradients([tensor.double() for tensor in tensors], 3, "reference"))


def broken_case(seed: int, size: tuple[int, int], names: set[str], whole: bool) -> list[Tensor]:
    """Some values that are not finite in the tensors of these names; ``whole`` offsets give weights of exactly 0."""
    torch.manual_seed(seed)
    tensors = random_case(2, 2, 3, size, 3, dtype=torch.float32)
    if whole:
        tensors[3] = torch.randint(-3, 4, tensors[3].shape).float()
    for name in names:
        tensor = tensors[NAMES.index(name)]
        hit = torch.rand(tensor.shape) < 0.1
        hit[..., 0, 0] |= torch.rand(hit.shape[:2]) < 0.5  # the corner is what stands for pixels outside
        tensor[hit] = torch.tensor(BROKEN)[torch.randint(3, (int(hit.sum()),))]
    return tensors


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # by numpy, in which Triton's interpreter computes
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    names=st.sets(st.sampled_from(["query", "key", "value", "modulation"]), min_size=1),
    whole=st.booleans(),
)
def test_infinity_and_nan_in_the_features(seed: int, size: tuple[int, int], names: set[str], whole: bool) -> None:
    """The paths agree on where they show, and on all other values."""
    tensors = broken_case(seed, size, names, whole)
    expected = sampled_attention(*tensors, kernel_size=3, backend="reference")
    for backend in ("cpu", "triton"):
        out = sampled_attention(*tensors, kernel_size=3, backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4, equal_nan=True)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), size=st.tuples(st.integers(1, 5), st.integers(1, 5)), whole=st.booleans())
def test_infinity_and_nan_are_sampled_as_by_a_deformable_convolution(
    seed: int, size: tuple[int, int], whole: bool
) -> None:
    """The four pixels around a sample take part, even with a weight of 0; those outside the map do not.

    But for samples exactly one pixel before the map, where torchvision does not look at the border.
    """
    value, offset, modulation = broken_case(seed, size, {"value"}, whole)[2:]
    features, one = value[:, :1], torch.ones(1, 1, 1, 1)
    shift, strength = offset[:, :2], modulation[:, :1]
    expected = deform_conv2d(features, shift, one, mask=strength)
    before = (torch.arange(size[0])[:, None] + shift[:, 0] == -1) | (torch.arange(size[1]) + shift[:, 1] == -1)
    actual = sample(features, shift, strength, 1)[:, :, 0]
    torch.testing.assert_close(actual[~before[:, None]], expected[~before[:, None]], equal_nan=True)


def shaped(**shapes: tuple[int, ...]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {name: torch.zeros(shape) for name, shape in shapes.items()}


def without_pixels(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:, :, :0] for name, tensor in tensors.items()}


@PATHS
@pytest.mark.parametrize(
    ("change", "name", "got", "expected"),
    [
        (shaped(query=(2, 3, 4)), "query", (2, 3, 4), None),
        (shaped(offset=(2, 18, 4, 6, 1)), "offset", (2, 18, 4, 6, 1), None),
        (shaped(query=(1, 3, 4, 6)), "query", (1, 3, 4, 6), (2, 3, 4, 6)),
        (shaped(key=(2, 4, 4, 6)), "key", (2, 4, 4, 6), (2, 3, 4, 6)),
        (shaped(key=(2, 3, 5, 6)), "key", (2, 3, 5, 6), (2, 3, 4, 6)),
        (shaped(value=(2, 5, 4, 7)), "query", (2, 3, 4, 6), (2, 3, 4, 7)),
        (shaped(offset=(2, 9, 4, 6)), "offset", (2, 9, 4, 6), (2, 18, 4, 6)),
        (shaped(modulation=(2, 9, 4, 5)), "modulation", (2, 9, 4, 5), (2, 9, 4, 6)),
        (shaped(query=(2, 0, 4, 6), key=(2, 0, 4, 6)), "query", (2, 0, 4, 6), None),
        (without_pixels, "value", (2, 5, 0, 6), None),
        (lambda tensors: tensors | {"key": tensors["key"].double()}, "key", "torch.float64", "torch.float32"),
        (
            lambda tensors: {n: t.int() for n, t in tensors.items()},
            "query",
            "torch.int32",
            "a floating-point dtype",
        ),
        (lambda tensors: tensors | {"offset": tensors["offset"].to("meta")}, "offset", "meta", "cpu"),
    ],
)
def test_tensors_that_do_not_fit(
    backend: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], name: str, got: object, expected: object
) -> None:
    tensors = change(dict(zip(NAMES, random_case(dtype=torch.float32), strict=True)))
    with raises(ValueError, kind="array", name=name, got=got, expected=expected):
        sampled_attention(**tensors, kernel_size=3, backend=backend)


@PATHS
@settings(max_examples=15)
@given(
    kernel_size=st.one_of(
        st.integers().filter(lambda number: number < 1 or number % 2 == 0),
        st.sampled_from([3.0, math.nan, "3", "", True, False, None, (3, 3), b"3", 3j]),
        st.floats(),
        st.text(alphabet=st.characters(categories=["L", "N"])),
    )
)
def test_kernel_sizes_that_are_no_odd_number(backend: str, kernel_size: Any) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - its message is compared below
        sampled_attention(*random_case(dtype=torch.float32), kernel_size=kernel_size, backend=backend)
    assert str(error.value) == f"kernel_size is {kernel_size!r}, expected an odd number: 1, 3, 5, ..."


def with_size(axis: int, change: int) -> Callable[[Tensor], Tensor]:
    """One side longer or shorter, or 0 for a change of -99."""

    def resize(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        shape[axis] = max(0, shape[axis] + change)
        return tensor.new_zeros(shape)

    return resize


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "no batch": lambda tensor: tensor[0],
    "one dimension more": lambda tensor: tensor[None],
    "a number": lambda tensor: tensor.sum(),
    "float64": lambda tensor: tensor.double(),
    "half": lambda tensor: tensor.half(),
    "integers": lambda tensor: tensor.int(),
    "truth values": lambda tensor: tensor > 0,
    "complex": lambda tensor: tensor.cfloat(),
    "elsewhere": lambda tensor: tensor.to("meta"),
    **{
        f"axis {axis} by {change}": with_size(axis, change)
        for axis, change in itertools.product(range(4), (-99, -1, 1, 7))
    },
}


@PATHS
@settings(max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    damage=st.sampled_from(sorted(DAMAGES)),
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel_size=st.sampled_from([1, 3]),
)
def test_one_tensor_that_does_not_fit_the_others(
    backend: str,
    name: str,
    damage: str,
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel_size: int,
) -> None:
    assume(not (name == "value" and damage.startswith("axis 1") and damage != "axis 1 by -99"))  # it may have any width
    tensors = dict(zip(NAMES, random_case(batch, *channels, size, kernel_size, dtype=torch.float32), strict=True))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - any message, of one line
        sampled_attention(**{**tensors, name: DAMAGES[damage](tensors[name])}, kernel_size=kernel_size, backend=backend)
    assert "\n" not in str(error.value)
    assert any(each in str(error.value) for each in NAMES)


@PATHS
@given(empty=st.sets(st.sampled_from([2, 3]), min_size=1))
def test_maps_of_nothing(backend: str, empty: set[int]) -> None:
    """No rows, no columns, in all tensors alike."""
    shapes = [list(tensor.shape) for tensor in random_case()]
    tensors = [torch.zeros([0 if axis in empty else side for axis, side in enumerate(shape)]) for shape in shapes]
    with raises(ValueError, kind="array", name="value", got=tuple(tensors[2].shape)):
        sampled_attention(*tensors, kernel_size=3, backend=backend)


@PATHS
def test_a_batch_of_no_images_gives_none(backend: str) -> None:
    tensors = [tensor[:0].float() for tensor in random_case()]
    out = sampled_attention(*tensors, kernel_size=3, backend=backend)
    assert out.shape == (0, *tensors[2].shape[1:])


def test_backends_that_cannot_run() -> None:
    tensors = random_case()
    with raises(ValueError, kind="argument", name="backend", got="cuda"):
        sampled_attention(*tensors, kernel_size=3, backend="cuda")
    with raises(ValueError, kind="argument", name="backend", got="cpu", expected="auto") as error:
        sampled_attention(*tensors, kernel_size=3, backend="cpu")
    assert "torch.float64" in str(error.value)
    elsewhere = [tensor.float().to("meta") for tensor in tensors]
    with raises(ValueError, kind="argument", name="backend", got="cpu", expected="auto") as error:
        sampled_attention(*elsewhere, kernel_size=3, backend="cpu")
    assert "on meta" in str(error.value)
