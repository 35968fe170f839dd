"""The address that errors of the network name."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from ddsm_zoo.hub.download import fetch
from ddsm_zoo.hub.faults import HubError
from ddsm_zoo.hub.model_files import CONFIG_FILE
from ddsm_zoo.hub.session import asked
from ddsm_zoo.hub.upload import push
from tests.support.errors import raises
from tests.support.hub_server import HubServer, guarded_server
from tests.support.tiny_weights import one_line

server = pytest.fixture(guarded_server)


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("", "asked https://hub.of.the.client"),
        ("https://mirror.example.org/", "asked https://mirror.example.org"),
        ("http://[::1]:8080/hub", "asked http://[::1]:8080/hub"),
        (
            "https://user:hf_secret@mirror.example.org:444/hub?key=hf_secret#hf_secret",
            "https://mirror.example.org:444/hub",
        ),
        ("http://user:123/hf_secret@example.org", "HF_ENDPOINT, which is no address"),
        ("nonsense", "HF_ENDPOINT, which is no address"),
        ("http://[::1", "HF_ENDPOINT, which is no address"),
        ("http://127.0.0.1:port", "HF_ENDPOINT, which is no address"),
        ("ftp://example.org", "HF_ENDPOINT, which is no address"),
    ],
)
def test_the_address_without_its_secrets(monkeypatch: pytest.MonkeyPatch, endpoint: str, shown: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.of.the.client")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert shown in asked()
    assert "secret" not in asked()


@pytest.mark.parametrize(
    "fault", [{"GET": 500}, {"GET": "corrupt"}, {"GET": "cut"}, {"HEAD": 404}, {"HEAD": 403}, {"HEAD": 200}]
)
def test_a_failed_download_names_the_server(server: HubServer, tmp_path: Path, fault: dict[str, int | str]) -> None:
    server.publish("someone/model", {CONFIG_FILE: b"any text"})
    server.faults = {(method, CONFIG_FILE): kind for method, kind in fault.items()}
    with pytest.raises(HubError) as error:
        fetch("hf-hub:someone/model", CONFIG_FILE, cache_dir=tmp_path)
    assert one_line(error).endswith(f" (asked {server.endpoint})")


def test_a_server_that_is_down_is_named(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the copy in the cache does."""
    server.publish("someone/model", {CONFIG_FILE: b"any text"})
    (found,) = fetch("hf-hub:someone/model", CONFIG_FILE, cache_dir=tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    for task in (
        lambda: fetch("hf-hub:someone/other", CONFIG_FILE, cache_dir=tmp_path),
        lambda: push("someone/model", {CONFIG_FILE: b"newer"}),
    ):
        with raises(HubError, kind="hub-unreachable") as error:
            task()
        assert "http://127.0.0.1:9)" in str(error.value)
    assert fetch("hf-hub:someone/model", CONFIG_FILE, cache_dir=tmp_path) == [found]
    assert "(asked http://127.0.0.1:9); using the copy in the cache" in caplog.text


def test_a_refused_push_names_the_server(server: HubServer) -> None:
    push("someone/model", {CONFIG_FILE: b"any text"}, private=True)
    for options in ({"private": False}, {"token": "hf_another"}):
        with pytest.raises(HubError) as error:
            push("someone/model", {CONFIG_FILE: b"newer"}, **options)
        assert one_line(error).endswith(f" (asked {server.endpoint})")


def test_what_asks_no_server_names_none(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(HubError, kind="hub-offline") as error:
        fetch("hf-hub:someone/model", CONFIG_FILE, cache_dir=tmp_path, local_files_only=True)
    assert "http" not in str(error.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with raises(HubError, kind="hub-offline") as error:
        fetch("hf-hub:someone/model", CONFIG_FILE, cache_dir=tmp_path)
    assert "http" not in str(error.value)
