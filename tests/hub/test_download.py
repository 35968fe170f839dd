"""Fetching with the real client and a server in this process; tests/faults has what goes wrong."""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import trustme

from ddsm_zoo.hub.download import fetch
from ddsm_zoo.hub.faults import HubError
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE, write_files
from ddsm_zoo.utils.files import LocalFile
from tests.support.errors import raises
from tests.support.hub_server import Fault, HubServer

URI = "hf-hub:someone/model"
BOTH = (CONFIG_FILE, WEIGHTS_FILE)
FILES = {CONFIG_FILE: b"any text", WEIGHTS_FILE: bytes(range(256)) * 100}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.publish("someone/model", FILES)
        yield server


def test_files_arrive_and_are_cached(server: HubServer, tmp_path: Path) -> None:
    files = fetch(URI, *BOTH, cache_dir=tmp_path)
    assert [file.path.read_bytes() for file in files] == [FILES[name] for name in BOTH]
    before = len(server.paths("GET"))
    assert fetch(URI, *BOTH, cache_dir=tmp_path) == files
    assert len(server.paths("GET")) == before


def test_a_commit_in_the_cache_needs_no_server(server: HubServer, tmp_path: Path) -> None:
    commit = server.publish("someone/model", {**FILES, "notes.txt": b"2"}, revision="v2")
    files = fetch(f"{URI}@{commit}", *BOTH, cache_dir=tmp_path)
    before = len(server.requests)
    assert fetch(f"{URI}@{commit}", *BOTH, cache_dir=tmp_path) == files
    assert len(server.requests) == before


def test_a_revision_is_honored(server: HubServer, tmp_path: Path) -> None:
    server.publish("someone/model", {**FILES, CONFIG_FILE: b"other"}, revision="v2")
    assert fetch(f"{URI}@v2", CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == b"other"
    assert fetch(URI, CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == FILES[CONFIG_FILE]


def test_all_files_come_from_one_commit(server: HubServer, tmp_path: Path) -> None:
    def publish_again(path: str) -> None:
        server.publish("someone/model", dict.fromkeys(BOTH, b"newer"))

    server.after_get = publish_again
    assert [file.path.read_bytes() for file in fetch(URI, *BOTH, cache_dir=tmp_path)] == [FILES[name] for name in BOTH]


def test_a_line_comes_before_any_waiting(server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ddsm_zoo"):
        fetch(URI, CONFIG_FILE, cache_dir=tmp_path)
    assert caplog.messages == [f"looking for {URI}@main/config.json"]


def test_offline_mode(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with raises(HubError, kind="hub-offline", name=f"{URI}@main/config.json"):
        fetch(URI, *BOTH, cache_dir=tmp_path)
    assert server.requests == []


def test_offline_mode_with_a_copy(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = fetch(URI, *BOTH, cache_dir=tmp_path)
    before = len(server.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(URI, *BOTH, cache_dir=tmp_path) == files
    assert len(server.requests) == before
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_file_that_cannot_be_renewed_is_used_as_it_is(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (old,) = fetch(URI, CONFIG_FILE, cache_dir=tmp_path)
    server.publish("someone/model", {**FILES, CONFIG_FILE: b"newer"})
    server.faults["GET", CONFIG_FILE] = 500
    assert fetch(URI, CONFIG_FILE, cache_dir=tmp_path) == [old]
    assert "using the copy in the cache" in caplog.text
    server.faults.clear()
    assert fetch(URI, CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == b"newer"


def test_a_newer_commit_of_which_less_is_there(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config alone arrived: the older copy is whole, and does when no server can be asked for the rest."""
    old = fetch(URI, *BOTH, cache_dir=tmp_path)
    server.publish("someone/model", {**FILES, CONFIG_FILE: b"newer"})
    assert fetch(URI, CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == b"newer"
    with monkeypatch.context() as context:
        context.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert fetch(URI, *BOTH, cache_dir=tmp_path) == old
    new = fetch(URI, *BOTH, cache_dir=tmp_path)
    assert new[0].path.read_bytes() == b"newer"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(URI, *BOTH, cache_dir=tmp_path) == new


def test_an_endpoint_with_a_slash_at_its_end(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{server.endpoint}/")
    assert fetch(URI, CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == FILES[CONFIG_FILE]


@pytest.mark.parametrize(
    "endpoint",
    ["nonsense", "http://[::1", "http://127.0.0.1:port", "http://127.0.0.1:99999", "http://user:hf_secret/@127.0.0.1"],
)
def test_an_endpoint_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with raises(HubError, name=f"{URI}@main/config.json") as error:
        fetch(URI, CONFIG_FILE, cache_dir=tmp_path)
    assert error.value.kind in ("hub", "hub-unreachable")
    assert "hf_secret" not in str(error.value)


@pytest.mark.parametrize("etag", ["../../../../evil", "{}/evil", "..\\\\evil"])
def test_a_server_that_means_another_place_than_the_cache(server: HubServer, tmp_path: Path, etag: str) -> None:
    """The client calls a file in its cache by what the server says of its content."""
    server.etag = lambda content: etag.format(tmp_path)
    with raises(HubError, kind="hub"):
        fetch(URI, CONFIG_FILE, cache_dir=tmp_path / "deep" / "cache")
    assert not list(tmp_path.rglob("*evil*"))


def test_the_token_goes_to_the_hub_and_nowhere_else(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with caplog.at_level(logging.DEBUG):
        fetch(URI, WEIGHTS_FILE, cache_dir=tmp_path)
        with pytest.raises(HubError) as error:
            fetch(URI, "absent", cache_dir=tmp_path)
    sent = {request.host.partition(":")[0]: request.authorization for request in server.requests}
    assert sent == {"127.0.0.1": "Bearer hf_secret", "localhost": None}
    assert "hf_secret" not in caplog.text + str(error.value)


def test_the_client_reads_its_environment(server: HubServer, tmp_path: Path) -> None:
    script = f"from ddsm_zoo.hub.download import fetch; print(fetch({URI!r}, {WEIGHTS_FILE!r})[0].path)"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": server.endpoint}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.parametrize("etag", [lambda content: hashlib.sha1(content).hexdigest(), lambda content: "of-any-kind"])
def test_a_mirror_with_hashes_of_its_own(server: HubServer, tmp_path: Path, etag: Callable[[bytes], str]) -> None:
    server.etag = etag
    assert fetch(URI, CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == FILES[CONFIG_FILE]


def test_a_token_of_the_call(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes before the client's own, and only to the Hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    fetch(URI, WEIGHTS_FILE, cache_dir=tmp_path, token="hf_mine")
    sent = {request.host.partition(":")[0]: request.authorization for request in server.requests}
    assert sent == {"127.0.0.1": "Bearer hf_mine", "localhost": None}
    server.requests.clear()
    fetch(URI, CONFIG_FILE, cache_dir=tmp_path, token=False)
    assert {request.authorization for request in server.requests} == {None}


def test_local_files_only(server: HubServer, tmp_path: Path) -> None:
    with raises(HubError, kind="hub-offline", name=f"{URI}@main/config.json"):
        fetch(URI, *BOTH, cache_dir=tmp_path, local_files_only=True)
    assert server.requests == []
    files = fetch(URI, *BOTH, cache_dir=tmp_path)
    before = len(server.requests)
    assert fetch(URI, *BOTH, cache_dir=tmp_path, local_files_only=True) == files
    assert len(server.requests) == before


def test_force_download(server: HubServer, tmp_path: Path) -> None:
    commit = server.publish("someone/model", FILES)
    for uri in (URI, f"{URI}@{commit}"):
        files = fetch(uri, *BOTH, cache_dir=tmp_path)
        before = len(server.paths("GET"))
        assert fetch(uri, *BOTH, cache_dir=tmp_path, force_download=True) == files
        assert len(server.paths("GET")) >= before + 2
    server.faults["GET", CONFIG_FILE] = 500
    with raises(HubError, kind="hub") as error:  # and not the copy in the cache
        fetch(URI, *BOTH, cache_dir=tmp_path, force_download=True)
    assert "500" in str(error.value)
    with raises(ValueError, kind="options", name="force_download"):
        fetch(URI, *BOTH, force_download=True, local_files_only=True)


def test_a_private_repository_needs_the_token(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    server.private.add("someone/model")
    with raises(HubError, kind="hub-access"):
        fetch(URI, *BOTH, cache_dir=tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(URI, *BOTH, cache_dir=tmp_path)[0].path.read_bytes() == FILES[CONFIG_FILE]


@pytest.fixture
def secure_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server with a certificate that the client trusts."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    huggingface_hub.close_session()  # the client reads its certificates when it opens one
    with HubServer(tls=context) as server:
        server.publish("someone/model", FILES)
        yield server
    huggingface_hub.close_session()


SHA256 = hashlib.sha256(FILES[WEIGHTS_FILE]).hexdigest()


def test_a_file_from_any_server_is_kept_by_its_hash(
    secure_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    uri = f"{secure_server.endpoint}/lfs/{SHA256}"
    (file,) = fetch(uri, WEIGHTS_FILE, cache_dir=tmp_path, sha256=SHA256)
    assert (file.path.read_bytes(), file.sha256) == (FILES[WEIGHTS_FILE], SHA256)
    assert file.path.is_relative_to(tmp_path)
    (again,) = fetch(uri, WEIGHTS_FILE, cache_dir=tmp_path, sha256=SHA256)
    assert (again.path, again.sha256) == (file.path, None)  # it may have changed in the cache
    assert [request.authorization for request in secure_server.requests] == [None]


@pytest.mark.parametrize(("fault", "kind"), [("cut", "hub-unreachable"), ("corrupt", "hub-hash"), (404, "hub")])
def test_another_file_from_any_server_is_refused(
    secure_server: HubServer, tmp_path: Path, fault: Fault, kind: str
) -> None:
    secure_server.faults["GET", SHA256] = fault
    uri = f"{secure_server.endpoint}/lfs/{SHA256}?key=hf_secret"
    with raises(HubError, kind=kind) as error:
        fetch(uri, WEIGHTS_FILE, cache_dir=tmp_path / "cache", sha256=SHA256)
    assert "hf_secret" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_file_from_any_server_needs_its_hash(tmp_path: Path) -> None:
    for sha256 in (None, "", "abc", SHA256.upper()):
        with raises(ValueError, kind="address", name="https://example.org/model") as error:
            fetch("https://user:hf_secret@example.org/model", cache_dir=tmp_path, sha256=sha256)
        assert "hf_secret" not in str(error.value)


def test_a_folder_a_training_run_and_a_file(tmp_path: Path) -> None:
    write_files(tmp_path / "run" / "best", FILES)
    expected = [LocalFile(path=tmp_path / "run" / "best" / name) for name in BOTH]
    assert fetch(f"local-dir:{tmp_path}/run/best", *BOTH) == expected
    assert fetch(f"local-dir:{tmp_path}/run", *BOTH) == expected
    assert fetch(f"file:{expected[1].path}", WEIGHTS_FILE) == expected[1:]
    with raises(FileNotFoundError, kind="missing-file", path="config.json"):
        fetch(f"local-dir:{tmp_path}", *BOTH)
    with raises(FileNotFoundError, kind="missing-file", path="absent"):
        fetch(f"file:{tmp_path}/absent", WEIGHTS_FILE)
    with raises(HubError, kind="missing-file", name="absent"):
        fetch("bundled:absent", WEIGHTS_FILE)
