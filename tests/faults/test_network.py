"""Faults of the server and of the transfer.

Sixteen of the 38 on the way of a weight; test_contents.py and test_machine.py have the others. Whatever happens: one
line that says what to do, soon; never a half file under its final name, never a wrong model; and once the fault is
gone, the same call works.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from torch import Tensor

from ddsm_zoo.hub import session
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.zoo.factory import create_model
from tests.support.hub_server import HubServer
from tests.support.refusals import URI, Files, final_files, refusal, weights_hash
from tests.support.tiny_weights import logits


def stop(server: HubServer) -> None:
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # the discard port: nobody listens


def test_server_down_without_a_copy(server: HubServer, cache: Path, expected: Tensor) -> None:
    stop(server)
    assert "cannot be reached" in refusal(cache)
    os.environ["HF_ENDPOINT"] = server.endpoint
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)


def test_server_down_with_a_copy(
    server: HubServer, cache: Path, expected: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    create_model(URI, pretrained=True, cache_dir=cache)
    stop(server)
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)
    assert "using the copy in the cache" in caplog.text


@pytest.mark.parametrize("asked", ["HEAD", "GET"])
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "log in with `hf auth login`"),
        (403, "check your token"),
        (429, "HTTP 429; try again later"),
        (500, "HTTP 500; try again later"),
        (503, "HTTP 503; try again later"),
    ],
)
def test_a_refusing_server(
    server: HubServer, cache: Path, files: Files, expected: Tensor, status: int, advice: str, name: str, asked: str
) -> None:
    where = weights_hash(files) if asked == "GET" and name == WEIGHTS_FILE else name
    server.faults[asked, where] = status
    server.headers = {"Retry-After": "300"}
    assert advice in refusal(cache)
    server.faults.clear()
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("hf-hub:someone/nothing", "no such repository"),
        (f"{URI}@v9", "no such revision"),
        ("hf-hub:someone/notes", "no such file; is it a ddsm-zoo model?"),
    ],
)
def test_what_is_not_there(server: HubServer, cache: Path, uri: str, reason: str) -> None:
    server.publish("someone/notes", {"notes.txt": b"nothing here"})
    text = refusal(cache, uri)
    assert reason in text
    assert uri in text
    assert final_files(cache) == {}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("cut", "cannot be reached"), ("reset", "cannot be reached"), ("corrupt", "arrived damaged")],
)
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_body_that_is_not_the_file(
    server: HubServer, cache: Path, files: Files, expected: Tensor, name: str, fault: Any, reason: str
) -> None:
    server.faults["GET", weights_hash(files) if name == WEIGHTS_FILE else name] = fault
    assert reason in refusal(cache)
    assert name not in final_files(cache)
    server.faults.clear()
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_body_that_stops_in_the_middle(
    server: HubServer, cache: Path, files: Files, expected: Tensor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The client would wait six times for the rest, for more than a minute; here a second stands for 20."""
    monkeypatch.setattr(session, "PATIENCE", 1.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.6)
    server.faults["GET", weights_hash(files) if name == WEIGHTS_FILE else name] = "stall"
    assert "the server stopped in the middle or keeps failing; check the network" in refusal(cache)
    assert name not in final_files(cache)
    server.faults.clear()
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)


def test_something_else_that_answers(server: HubServer, cache: Path, expected: Tensor, files: Files) -> None:
    """As a page does that wants a login: it names no commit, and the client would do with what it has of main."""
    other = dict.fromkeys((CONFIG_FILE, WEIGHTS_FILE), b"other")
    server.publish("someone/model", other, "v2")
    create_model(URI, pretrained=True, cache_dir=cache)
    server.faults = {("HEAD", name): 200 for name in other}
    server.headers = {"ETag": '"a-page"'}
    assert "the server that answers is not a Hub; check the network" in refusal(cache, f"{URI}@v2")
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)
    server.faults.clear()
    assert "is not valid JSON" in refusal(cache, f"{URI}@v2")


def test_a_server_that_never_answers(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "cannot be reached" in refusal(cache)


def test_an_address_where_nobody_answers(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a firewall that drops what it does not know; the Hub has four addresses, all of which are tried."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: 4 * resolve(*args, **options)[:1])
    monkeypatch.setattr(session, "PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{full.getsockname()[1]}")
        started = time.monotonic()
        assert "cannot be reached (ConnectTimeout)" in refusal(cache)
        assert time.monotonic() - started < 10
