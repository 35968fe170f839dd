"""1 x 1 convolutions on one CPU thread: the same values, by oneDNN, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ddsm_zoo.inference.modes import full_image
from ddsm_zoo.utils.pointwise import fast_pointwise


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1, stride=2, padding=1)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def images() -> Tensor:
    return torch.rand(2, 3, 17, 22).contiguous(memory_format=torch.channels_last)


def dilations(model: nn.Module) -> list[tuple[int, ...]]:
    return [part.dilation for part in model.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.numeric
def test_values_and_derivatives_are_those_of_the_plain_call() -> None:
    model, x = network(), images().requires_grad_()
    plain = model(x)
    expected = torch.autograd.grad(plain.square().sum(), [x, *model.parameters()])
    with fast_pointwise(model, x):
        found = model(x)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    derivatives = torch.autograd.grad(found.square().sum(), [x, *model.parameters()])
    torch.testing.assert_close(derivatives, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_torch_leaves_its_own_code_alone() -> None:
    model, x = network(), images()
    predict = full_image(model)
    predict(x)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        predict(x)
    names = [event.key for event in profiled.key_averages()]
    assert "aten::mkldnn_convolution" in names
    assert not [name for name in names if "slow_conv2d" in name]


@pytest.mark.usefixtures("one_thread")
def test_layers_are_as_before_also_after_an_error() -> None:
    model, x = network(), images()
    before = dilations(model)
    with pytest.raises(ZeroDivisionError), fast_pointwise(model, x):
        assert dilations(model) == [(2, 2), (1, 1), (2, 2)]
        raise ZeroDivisionError
    assert dilations(model) == before


def test_several_threads_change_nothing() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = network()
        with fast_pointwise(model, images()):
            assert dilations(model) == [(1, 1)] * 3
    finally:
        torch.set_num_threads(threads)
