"""Gradients of gradients and torch.func: right on every path, whichever part of it computes them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddsm_zoo.ops import cpu, sampled_attention
from tests.support.attention_cases import NAMES, random_case

FAST = pytest.mark.parametrize("backend", ["cpu", "triton"])


def attend(backend: str) -> Callable[..., Tensor]:
    return functools.partial(sampled_attention, kernel_size=3, backend=backend)


def second_order(tensors: list[Tensor], backend: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A penalty on the gradients, as for Wasserstein critics, and its own gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attend(backend)(*leaves)
    gradients = torch.autograd.grad(out, leaves, torch.ones_like(out), create_graph=True)
    penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    return penalty.detach(), torch.autograd.grad(penalty, leaves)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Within a thousandth of the largest."""
    assert (actual.double() - expected.double()).abs().max() <= 1e-3 * expected.abs().max() + 1e-6


@FAST
def test_gradients_of_gradients_are_those_of_the_reference(backend: str) -> None:
    """The gradient that starts it all is constant, where a function that can be differentiated once says nothing."""
    tensors = random_case(size=(3, 4), dtype=torch.float32)
    penalty, gradients = second_order(tensors, backend)
    expected, targets = second_order([tensor.double() for tensor in tensors], "reference")
    assert_close(penalty, expected)
    for name, gradient, target in zip(NAMES, gradients, targets, strict=True):
        assert target.abs().max() > 1e-3, name
        assert_close(gradient, target)


def test_gradients_of_gradients_are_differences_of_gradients() -> None:
    """The CPU path takes float64 when asked directly, and then finite differences can be taken of what it computes."""
    tensors = random_case(1, 2, 2, (2, 3), 3, spread=1)
    directions = [torch.randn_like(tensor) for tensor in tensors]

    def slopes(step: float, create_graph: bool = False) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        leaves = [
            (tensor + step * direction).requires_grad_() for tensor, direction in zip(tensors, directions, strict=True)
        ]
        out = cpu.sampled_attention(*leaves, 3)
        return leaves, torch.autograd.grad(out.square().sum(), leaves, create_graph=create_graph)

    leaves, gradients = slopes(0, create_graph=True)
    along = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    step = 1e-5
    ahead, behind = slopes(step)[1], slopes(-step)[1]
    for found, more, less in zip(torch.autograd.grad(along, leaves), ahead, behind, strict=True):
        torch.testing.assert_close(found, (more - less) / (2 * step), atol=1e-6, rtol=1e-5)


def test_finite_differences_of_the_cpu_path() -> None:
    tensors = [tensor.requires_grad_() for tensor in random_case(1, 2, 2, (2, 3), 3, spread=1)]
    run = functools.partial(cpu.sampled_attention, kernel_size=3)
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@FAST
def test_one_tensor_in_several_places(backend: str) -> None:
    """Its gradient is the sum over them, in first and in second order."""
    shared, _, _, offset, modulation = random_case(1, 3, 3, (3, 4), dtype=torch.float32)
    results = []
    for path, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaf = shared.to(dtype).requires_grad_()
        out = attend(path)(leaf, leaf, leaf, offset.to(dtype), modulation.to(dtype))
        (gradient,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
        results.append((gradient, *torch.autograd.grad(gradient.square().sum(), leaf)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@FAST
def test_functional_gradients(backend: str) -> None:
    tensors = random_case(size=(3, 4), dtype=torch.float32)

    def energy(*inputs: Tensor, path: str = backend) -> Tensor:
        return attend(path)(*inputs).square().sum()

    exact = functools.partial(energy, path="reference")
    wanted = tuple(range(len(NAMES)))
    doubles = [tensor.double() for tensor in tensors]
    found = torch.func.grad(energy, argnums=wanted)(*tensors)
    for actual, expected in zip(found, torch.func.grad(exact, argnums=wanted)(*doubles), strict=True):
        assert_close(actual, expected)
    direction = torch.randn_like(tensors[2])
    assert_close(bend(energy, tensors, direction), bend(exact, doubles, direction.double()))


def bend(function: Callable[..., Tensor], tensors: list[Tensor], direction: Tensor) -> Tensor:
    """Second derivative by the value, times a direction."""
    query, key, value, offset, modulation = tensors
    slope = torch.func.grad(lambda moved: function(query, key, moved, offset, modulation))
    bent: Tensor = torch.func.vjp(slope, value)[1](direction)[0]
    return bent


@FAST
def test_mapped_over(backend: str) -> None:
    """torch.func.vmap over some of the tensors, each along its own dimension, is a loop."""
    cases = [random_case(size=(3, 4), dtype=torch.float32) for _ in range(3)]
    query, key, value, offset, modulation = (torch.stack(each) for each in zip(*cases, strict=True))
    dims = (0, 2, None, 4, 0)
    mapped = torch.func.vmap(attend(backend), in_dims=dims)(
        query, key.movedim(0, 2), value[0], offset.movedim(0, 4), modulation
    )
    expected = [attend("reference")(query[i], key[i], value[0], offset[i], modulation[i]) for i in range(3)]
    torch.testing.assert_close(mapped, torch.stack(expected), atol=1e-5, rtol=1e-5)


@FAST
def test_gradients_of_each_sample(backend: str) -> None:
    cases = [random_case(1, size=(3, 4), dtype=torch.float32) for _ in range(3)]

    def energy(*inputs: Tensor) -> Tensor:
        return attend(backend)(*inputs).square().sum()

    found = torch.func.vmap(torch.func.grad(energy, argnums=3))(*map(torch.stack, zip(*cases, strict=True)))
    for index, case in enumerate(cases):
        leaves = [tensor.double().requires_grad_() for tensor in case]
        (expected,) = torch.autograd.grad(attend("reference")(*leaves).square().sum(), leaves[3])
        assert_close(found[index], expected)
