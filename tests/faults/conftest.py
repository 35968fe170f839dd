"""A published model, and the real client in front of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.file_download
import pytest
from torch import Tensor

from ddsm_zoo.models import saving
from tests.support.hub_server import TOKEN, HubServer
from tests.support.refusals import Files
from tests.support.tiny_weights import logits, trained_model


@pytest.fixture(scope="session")
def files() -> Files:
    """What a published repository holds."""
    return saving.pack(trained_model())


@pytest.fixture(scope="session")
def expected() -> Tensor:
    return logits(trained_model())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, files: Files) -> Iterator[HubServer]:
    """It publishes the model. The client has a token, retries at once, and asks nobody else."""
    clock = type("Clock", (), {"time": staticmethod(time.time), "sleep": staticmethod(lambda seconds: None)})
    monkeypatch.setattr(huggingface_hub.file_download, "time", clock)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.publish("someone/model", files)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
