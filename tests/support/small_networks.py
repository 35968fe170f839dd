"""The networks that `python -m benchmarks.speed` measures, in sizes that take milliseconds."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks.speed import growth, networks


def use_small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured of them stays the same."""
    monkeypatch.setattr(networks, "OURS", "uper_ddsm_tiny")
    monkeypatch.setattr(growth, "WHOLE", ((64, 128),))
    monkeypatch.setattr(networks, "TWIN", "uper_tiny")
    monkeypatch.setattr(networks, "OWN", ("uper_ddsm_tiny", "uper_tiny"))

    def build(classes: int) -> nn.Module:
        return nn.Conv2d(3, classes, 1)

    monkeypatch.setattr(networks, "BASELINES", {networks.DANET: build, "smp UPerNet-R101": build})
