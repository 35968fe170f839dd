"""Fixtures of models: nothing leaves this machine, a server of one's own, a table of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import huggingface_hub.constants
import pytest

from ddsm_zoo.zoo import registry
from tests.support.hub_server import HubServer


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test fetches it must ask its own server for; the backbone's weights are never there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models registered in a test are gone after it."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
