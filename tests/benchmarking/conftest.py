from __future__ import annotations

import pytest
from torch import nn

from ddsm_zoo.benchmarking import networks


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites with models that take milliseconds; what they measure stays the same."""
    monkeypatch.setattr(networks, "OURS", "uper_ddsm_tiny")
    monkeypatch.setattr(networks, "OWN", ("uper_ddsm_tiny", "uper_tiny"))

    def build(classes: int) -> nn.Module:
        return nn.Conv2d(3, classes, 1)

    monkeypatch.setattr(networks, "PEERS", {networks.DANET: build, "smp UPerNet-R101": build})
