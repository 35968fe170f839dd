"""Norms over all processes: what they keep of those they replace. How they count is told by test_train_processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import distributed as dist
from torch import nn

from ddsm_zoo.layers.common import ConvNormAct
from ddsm_zoo.training.sync_batch_norm import SyncBatchNorm2d, synchronize


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        BatchNormAct2d(4, act_layer=nn.SiLU),
        ConvNormAct(4, 6),
        nn.BatchNorm2d(6, affine=False),
    )


@pytest.fixture
def alone() -> Iterator[None]:
    """One process that works together with itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_of_one_process_they_are_those_of_torch(alone: None, momentum: float | None) -> None:
    """In float64: the two sum in different orders, and in float32 the processor decides how far apart they end."""
    outcomes = []
    for synchronized in (False, True):
        torch.manual_seed(0)
        model = network().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
        if synchronized:
            synchronize(model, torch.device("cpu"))
            assert sum(isinstance(module, SyncBatchNorm2d) for module in model.modules()) == 3
        x = torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            logits = model(x)
            (logits * torch.randn_like(logits)).sum().backward()
        assert x.grad is not None
        outcomes.append([logits, x.grad, *(p.grad for p in model.parameters()), *model.buffers(), model.eval()(x)])
    for ours, torchs in zip(*reversed(outcomes), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)


def test_one_value_a_channel_has_no_variance(alone: None) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    synchronize(model, torch.device("cpu"))
    assert torch.equal(model(torch.randn(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1))
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_parameters_and_activations_stay(device: str) -> None:
    """In evaluation, where those for GPUs work on the CPU too."""
    model = network()
    x = torch.randn(2, 3, 7, 8)
    model(x)
    expected, parameters, names = model.eval()(x), list(model.parameters()), list(model.state_dict())
    synchronize(model, torch.device(device))
    assert not any(module.training for module in model.modules())
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == (3 if device == "cuda" else 0)
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == names
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
