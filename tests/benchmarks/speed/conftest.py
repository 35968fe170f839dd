from __future__ import annotations

import pytest

from tests.support.small_networks import use_small_networks


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites with models that take milliseconds."""
    use_small_networks(monkeypatch)
