"""Addresses of models: those that are none, and their secrets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ddsm_zoo.hub.address import public_uri
from ddsm_zoo.hub.download import fetch
from ddsm_zoo.hub.model_files import WEIGHTS_FILE
from tests.support.errors import raises

SHA256 = hashlib.sha256(b"").hexdigest()


def test_an_address_is_repeated_without_its_secrets(tmp_path: Path) -> None:
    for uri in (
        "http://user:hf_secret@example.org/model?key=hf_secret",
        "https://user:hf_secret@[zz/model",
        "https://user:a/hf_secret@example.org/model",
        "https://user:a?hf_secret@example.org/model",
        "https:/user:hf_secret@example.org/model",
        "https:user:hf_secret@example.org/model",
        "user:hf_secret@example.org/model",
        "https:x",
    ):
        with raises(ValueError, kind="address") as error:
            fetch(uri, cache_dir=tmp_path, sha256=SHA256)
        assert "hf_secret" not in str(error.value)
    for uri in ("https://example.org/a@1/model", "hf-hub:someone/model@v1", "local-dir:a#b?"):
        assert public_uri(uri) == uri
    signed = "https://user:hf_secret@example.org:8443/a@1/model?key=hf_secret@#hf_secret"
    assert public_uri(signed) == "https://example.org:8443/a@1/model"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "model.safetensors",
        "http://example.org/model.safetensors",
        "hf-hub:",
        "hf-hub:name",
        "hf-hub:a/b/c",
        "hf-hub:../b",
        "hf-hub:a/..",
        "hf-hub:a/b@../../x",
        "hf-hub:a/b@/etc",
        "hf-hub:a/b@v 1",
        "hf-hub:a/b\n",
        "hf-hub:a\0/b",
        "local-dir:a\0b",
        "bundled:../hub.py",
        "bundled:/etc/passwd",
    ],
)
def test_addresses_that_are_none(uri: str, tmp_path: Path) -> None:
    with raises(ValueError, kind="address"):
        fetch(uri, WEIGHTS_FILE, cache_dir=tmp_path)
