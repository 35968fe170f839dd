"""Tools that other people write for any network: hooks, adapters, tracers, empty batches."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ddsm_zoo

NAMES = ["uper_tiny", "uper_dcn_tiny", "uper_ddsm_tiny", "deeplabv3plus_ddsm_tiny"]


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("name", NAMES)
def test_backward_hooks_on_convolutions(name: str) -> None:
    """Which make what a module returns a view that nobody may change."""
    model = ddsm_zoo.create_model(name, num_classes=5).eval()
    called = []
    for path, module in convolutions(model).items():
        module.register_full_backward_hook(lambda *_, path=path: called.append(path))
    model(torch.randn(1, 3, 64, 96, requires_grad=True)).sum().backward()
    assert set(called) == convolutions(model).keys()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_hook_keeps_stays_what_the_layer_returned(name: str) -> None:
    model = ddsm_zoo.create_model(name, num_classes=5).eval()
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    plain = {path: module for path, module in convolutions(model).items() if type(module).forward is nn.Conv2d.forward}
    for path, module in plain.items():
        module.register_forward_hook(lambda _, args, out, path=path: kept.__setitem__(path, (args[0].clone(), out)))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
    assert kept.keys() == plain.keys()
    for path, (given, out) in kept.items():
        layer = plain[path]
        expected = F.conv2d(given, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


class Adapter(nn.Module):
    """A convolution with a low-rank branch beside it, as PEFT puts in its place."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 4, 1, bias=False)
        self.up = nn.Conv2d(4, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out

    def merged(self) -> nn.Conv2d:
        merged = copy.deepcopy(self.base)
        merged.weight.data += torch.einsum("oihw,ichw->ochw", self.up.weight, self.down.weight)
        return merged


def test_merging_adapters_changes_nothing() -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5).double().eval()
    pointwise = [path for path, layer in convolutions(model).items() if path.endswith("_projection")]
    assert len(pointwise) == 6
    for path in pointwise:
        model.set_submodule(path, Adapter(model.get_submodule(path)).double())
    image = torch.randn(1, 3, 64, 96).double()
    with torch.no_grad():
        apart = model(image)
        for path in pointwise:
            model.set_submodule(path, model.get_submodule(path).merged())
        torch.testing.assert_close(model(image), apart, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_no_logits(name: str) -> None:
    model = ddsm_zoo.create_model(name, num_classes=5).eval()
    assert model(torch.empty(0, 3, 64, 96)).shape == (0, 5, 64, 96)


@pytest.mark.parametrize("size", [(64, 96), (128, 128)])
def test_jit_traces_for_all_sizes_whatever_the_example(size: tuple[int, int]) -> None:
    """At 128 x 128 the position tables of 8 cells are as large as a level."""
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=5).eval()
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing itself, which torch announces the end of
            traced = torch.jit.trace(model, torch.randn(1, 3, *size), check_trace=False)
        torch.testing.assert_close(traced(image), model(image), atol=1e-4, rtol=1e-4)
