"""The recipe's precision "auto": one that a step is faster with, and that all processes share."""

from __future__ import annotations

import dataclasses
import logging
import time

import pytest
import torch
from torch import Tensor, nn

from ddsm_zoo.training import precision
from ddsm_zoo.training.precision import settle_precision
from ddsm_zoo.training.recipe import Recipe

AUTO = Recipe(model="uper_tiny", crop_size=(32, 32), precision="auto")


class Timed(nn.Module):
    num_classes = 3

    def __init__(self, slow: torch.dtype | None, off: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.slow, self.off = slow, off

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(images)
        time.sleep(0.05 if out.dtype == self.slow else 0.005)
        if out.dtype == torch.bfloat16:
            out = out + self.off * torch.arange(3).view(1, 3, 1, 1)
        return self.norm(out.float()) if not self.off else out


@pytest.mark.parametrize(
    ("model", "chosen", "reason"),
    [
        (Timed(torch.float32), "bf16", "a step in bf16 takes"),
        (Timed(torch.bfloat16), "no", "a step in bf16 takes"),
        (Timed(torch.float32, off=9.0), "no", "bf16 changes the loss by"),
    ],
)
def test_bf16_must_be_faster_and_give_the_same_loss(
    model: Timed, chosen: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, "ddsm_zoo"):
        settled = settle_precision(AUTO, model, 3)
    assert settled == dataclasses.replace(AUTO, precision=chosen)
    assert caplog.records[0].getMessage().startswith(f"precision auto: {chosen}, {reason}")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_machine_without_bf16(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    with caplog.at_level(logging.INFO, "ddsm_zoo"):
        assert settle_precision(AUTO, Timed(None), 3).precision == "no"
    assert "has no instructions for bfloat16" in caplog.records[0].getMessage()


def test_another_precision_is_left_alone() -> None:
    recipe = dataclasses.replace(AUTO, precision="bf16")
    assert settle_precision(recipe, Timed(None), 3) is recipe
