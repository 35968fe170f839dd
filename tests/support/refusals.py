"""What the tests of faults share: the one line that must end each attempt, and what may be left behind."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from ddsm_zoo.hub.faults import HubError
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.models import BackboneError
from ddsm_zoo.utils.files import CheckpointError
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.utils.registry import UnregisteredError
from ddsm_zoo.zoo.factory import create_model
from tests.support.hub_server import TOKEN
from tests.support.tiny_weights import one_line

URI = "hf-hub:someone/model"
Files = dict[str, bytes]


def weights_hash(files: Files) -> str:
    return hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()


def refusal(cache: Path, uri: str = URI, pretrained: bool = True) -> str:
    """The one line that ends the attempt, within 30 seconds and without the token."""
    started = time.monotonic()
    with pytest.raises((HubError, ConfigError, BackboneError, CheckpointError, UnregisteredError)) as error:
        create_model(uri, pretrained, cache_dir=cache)
    assert time.monotonic() - started < 30
    assert TOKEN not in str(error.value)
    return one_line(error)


def final_files(cache: Path) -> Files:
    """The files of the cache that anybody would take for whole, by name."""
    found = (path for path in cache.rglob("*") if path.name in (CONFIG_FILE, WEIGHTS_FILE))
    return {path.name: path.read_bytes() for path in found}
