"""Fetching with the real client from a server in this process, and reading what cannot be trusted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo import hub
from ddsm_zoo.config import ConfigError, ModelConfig, WeightsSpec
from ddsm_zoo.hub import CheckpointError, HubError
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.manifest import Manifest, flatten, read_manifest, render_manifest, unflatten
from tests.hub_server import HubServer

URI = "hf-hub:someone/model"
BOTH = (hub.CONFIG_FILE, hub.WEIGHTS_FILE)
TENSORS = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.steps": torch.tensor(7)}


def manifest(**changes: Any) -> Manifest:
    labels = LabelSpace.from_names(("road", "sky", "tree"))
    values: dict[str, Any] = {
        "architecture": "uper_tiny",
        "num_classes": 3,
        "label_names": labels.names,
        "model_args": ModelConfig(decoder="uper", backbone="test_resnet.r160_in1k", num_classes=3),
        "pretrained_cfg": WeightsSpec(uri="file:model.safetensors", dataset="made up", labels=labels),
    }
    return Manifest(**{**values, **changes})


FILES = {
    hub.CONFIG_FILE: render_manifest(manifest()).encode(),
    hub.WEIGHTS_FILE: hub.pack_tensors(TENSORS),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.publish("someone/model", FILES)
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client resumes a broken download up to five times, a second apart; here without the seconds."""

    class Clock:
        time = staticmethod(time.time)
        sleep = staticmethod(lambda seconds: None)

    monkeypatch.setattr(huggingface_hub.file_download, "time", Clock)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text
    return text


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".safetensors", ".json")]


# -- the Hub


def test_files_arrive_and_are_cached(server: HubServer, tmp_path: Path) -> None:
    paths = hub.fetch(URI, *BOTH, cache_dir=tmp_path)
    assert [path.read_bytes() for path in paths] == [FILES[name] for name in BOTH]
    before = len(server.paths("GET"))
    assert hub.fetch(URI, *BOTH, cache_dir=tmp_path) == paths
    assert len(server.paths("GET")) == before


def test_a_commit_in_the_cache_needs_no_server(server: HubServer, tmp_path: Path) -> None:
    commit = server.publish("someone/model", {**FILES, "notes.txt": b"2"}, revision="v2")
    paths = hub.fetch(f"{URI}@{commit}", *BOTH, cache_dir=tmp_path)
    before = len(server.requests)
    assert hub.fetch(f"{URI}@{commit}", *BOTH, cache_dir=tmp_path) == paths
    assert len(server.requests) == before


def test_a_revision_is_honoured(server: HubServer, tmp_path: Path) -> None:
    server.publish("someone/model", {**FILES, hub.CONFIG_FILE: b"other"}, revision="v2")
    assert hub.fetch(f"{URI}@v2", hub.CONFIG_FILE, cache_dir=tmp_path)[0].read_bytes() == b"other"
    assert hub.fetch(URI, hub.CONFIG_FILE, cache_dir=tmp_path)[0].read_bytes() == FILES[hub.CONFIG_FILE]


def test_all_files_come_from_one_commit(server: HubServer, tmp_path: Path) -> None:
    def publish_again(path: str) -> None:
        server.publish("someone/model", dict.fromkeys(BOTH, b"newer"))

    server.after_get = publish_again
    assert [path.read_bytes() for path in hub.fetch(URI, *BOTH, cache_dir=tmp_path)] == [FILES[name] for name in BOTH]


@pytest.mark.parametrize(
    ("uri", "name", "reason"),
    [
        ("hf-hub:someone/nothing", hub.WEIGHTS_FILE, "no such repository"),
        (f"{URI}@v9", hub.WEIGHTS_FILE, "no such revision"),
        (URI, "absent.safetensors", "no such file"),
    ],
)
def test_what_is_not_there(server: HubServer, tmp_path: Path, uri: str, name: str, reason: str) -> None:
    with pytest.raises(HubError, match=reason) as error:
        hub.fetch(uri, name, cache_dir=tmp_path)
    assert uri in one_line(error)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_refusing_server(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, method: str
) -> None:
    if (method, status) == ("GET", 429):  # the client waits as the server asks: not at all
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    server.faults[method, hub.CONFIG_FILE] = status
    started = time.monotonic()
    with pytest.raises(HubError, match=f"HTTP {status}") as error:
        hub.fetch(URI, *BOTH, cache_dir=tmp_path)
    one_line(error)
    assert time.monotonic() - started < 5
    assert files_under(tmp_path) == []


def stop(server: HubServer) -> None:
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # the discard port: nobody listens


def refuse(server: HubServer) -> None:
    server.faults["HEAD", ""] = 503


@pytest.mark.parametrize("trouble", [stop, refuse])
def test_the_cache_serves_when_the_server_does_not(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Callable[[HubServer], None]
) -> None:
    paths = hub.fetch(URI, *BOTH, cache_dir=tmp_path)
    trouble(server)
    with caplog.at_level(logging.WARNING):
        assert hub.fetch(URI, *BOTH, cache_dir=tmp_path) == paths
    assert "using the copy in the cache" in caplog.text


def test_a_server_that_is_down_is_reported_at_once(server: HubServer, tmp_path: Path) -> None:
    stop(server)
    started = time.monotonic()
    with pytest.raises(HubError, match="cannot be reached") as error:
        hub.fetch(URI, *BOTH, cache_dir=tmp_path)
    one_line(error)
    assert time.monotonic() - started < 5


def test_offline_mode(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE") as error:
        hub.fetch(URI, *BOTH, cache_dir=tmp_path)
    one_line(error)
    assert server.requests == []


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_body_cut_short_leaves_nothing(server: HubServer, tmp_path: Path, impatient: None, fault: Any) -> None:
    sha256 = hub.sha256_of(write(tmp_path / "x", FILES[hub.WEIGHTS_FILE]))
    server.faults["GET", sha256] = fault
    with pytest.raises(HubError, match="cannot be reached") as error:
        hub.fetch(URI, hub.WEIGHTS_FILE, cache_dir=tmp_path / "cache")
    one_line(error)
    assert files_under(tmp_path / "cache") == []
    server.faults.clear()
    assert hub.fetch(URI, hub.WEIGHTS_FILE, cache_dir=tmp_path / "cache")[0].read_bytes() == FILES[hub.WEIGHTS_FILE]


def test_a_wrong_body_of_the_right_length(server: HubServer, tmp_path: Path) -> None:
    sha256 = hub.sha256_of(write(tmp_path / "x", FILES[hub.WEIGHTS_FILE]))
    server.faults["GET", sha256] = "corrupt"
    with pytest.raises(HubError, match="damaged") as error:
        hub.fetch(URI, hub.WEIGHTS_FILE, cache_dir=tmp_path / "cache")
    one_line(error)
    server.faults.clear()
    assert hub.fetch(URI, hub.WEIGHTS_FILE, cache_dir=tmp_path / "cache")[0].read_bytes() == FILES[hub.WEIGHTS_FILE]


def test_the_token_goes_to_the_hub_and_nowhere_else(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with caplog.at_level(logging.DEBUG):
        hub.fetch(URI, hub.WEIGHTS_FILE, cache_dir=tmp_path)
        with pytest.raises(HubError) as error:
            hub.fetch(URI, "absent", cache_dir=tmp_path)
    sent = {request.host.partition(":")[0]: request.authorization for request in server.requests}
    assert sent == {"127.0.0.1": "Bearer hf_secret", "localhost": None}
    assert "hf_secret" not in caplog.text + str(error.value)


def test_an_unwritable_cache(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="Not a directory") as error:
        hub.fetch(URI, hub.WEIGHTS_FILE, cache_dir=write(tmp_path / "file", b""))
    one_line(error)


def test_the_client_reads_its_environment(server: HubServer, tmp_path: Path) -> None:
    script = f"from ddsm_zoo import hub; print(hub.fetch({URI!r}, {hub.WEIGHTS_FILE!r})[0])"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": server.endpoint}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)


# -- other addresses


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
        "hf-hub:a\0/b",
        "local-dir:a\0b",
        "bundled:../hub.py",
        "bundled:/etc/passwd",
    ],
)
def test_addresses_that_are_none(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no|no valid revision|no plain file name") as error:
        hub.fetch(uri, hub.WEIGHTS_FILE, cache_dir=tmp_path)
    one_line(error)


def test_a_folder_a_training_run_and_a_file(tmp_path: Path) -> None:
    hub.write_files(tmp_path / "run" / "best", FILES)
    expected = [tmp_path / "run" / "best" / name for name in BOTH]
    assert hub.fetch(f"local-dir:{tmp_path}/run/best", *BOTH) == expected
    assert hub.fetch(f"local-dir:{tmp_path}/run", *BOTH) == expected
    assert hub.fetch(f"file:{expected[1]}", hub.WEIGHTS_FILE) == expected[1:]
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        hub.fetch(f"local-dir:{tmp_path}", *BOTH)
    with pytest.raises(FileNotFoundError, match="expected a .safetensors file"):
        hub.fetch(f"file:{tmp_path}/absent", hub.WEIGHTS_FILE)
    with pytest.raises(HubError, match="holds no file weights/absent"):
        hub.fetch("bundled:absent", hub.WEIGHTS_FILE)


# -- what is in the files


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = FILES[hub.WEIGHTS_FILE]
OVERLAP = json.dumps({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}).encode()
UNSIGNED = safetensors.torch.save({"a": torch.zeros(3, dtype=torch.uint8)})
DAMAGED = {
    "empty": (b"", "not a safetensors file"),
    "short": (GOOD[:5], "not a safetensors file"),
    "cut in the header": (GOOD[:30], "cut short"),
    "cut in the tensors": (GOOD[:-40], "damaged"),
    "too long": (GOOD + b"more", "damaged"),
    "huge header": (struct.pack("<Q", 2**40) + GOOD[8:], "not a safetensors file"),
    "header is no JSON": (with_header(b"{nothing"), "damaged"),
    "overlapping offsets": (with_header(OVERLAP, bytes(12)), "damaged"),
    "offset beyond the file": (with_header(json.dumps({"a": entry("F32", [9], 0, 36)}).encode(), bytes(8)), "damaged"),
    "unknown type": (with_header(json.dumps({"a": entry("Q99", [1], 0, 4)}).encode(), bytes(4)), "damaged"),
    "type that weights never have": (UNSIGNED, "uint8"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(64), "not a safetensors file"),
    "a pickle": (pickle.dumps({"a": 1}), "pickle"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_weights(tmp_path: Path, case: str) -> None:
    content, reason = DAMAGED[case]
    with pytest.raises(CheckpointError, match=reason) as error:
        hub.read_tensors(write(tmp_path / "model.safetensors", content))
    one_line(error)


def test_a_torch_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="pickle"):
        hub.read_tensors(path)


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_arbitrary_bytes_are_tensors_or_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, position: int
) -> None:
    path = write(tmp_path_factory.mktemp("fuzz") / "model.safetensors", GOOD[:position] + content)
    with contextlib.suppress(CheckpointError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in hub.read_tensors(path).values())


@pytest.mark.parametrize("length", range(60, 190, 8))
def test_headers_of_any_length(tmp_path: Path, length: int) -> None:
    """A header of 128 bytes begins with the byte that a pickle begins with."""
    header = json.dumps({"a": entry("F32", [1], 0, 4)}).encode().ljust(length)
    assert hub.read_tensors(write(tmp_path / "model.safetensors", with_header(header, bytes(4))))["a"] == 0


def test_weights_and_config_come_back(tmp_path: Path) -> None:
    hub.write_files(tmp_path, FILES)
    tensors = hub.read_tensors(hub.find_weights(tmp_path))
    assert read_manifest(tmp_path / hub.CONFIG_FILE) == manifest()
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_the_same_tensors_give_the_same_bytes() -> None:
    assert hub.pack_tensors(dict(reversed(TENSORS.items()))) == hub.pack_tensors(TENSORS)


def test_a_hash_that_does_not_match(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", GOOD)
    assert hub.verify(path, None) == hub.verify(path, hub.sha256_of(path))
    with pytest.raises(CheckpointError, match="expected 0000") as error:
        hub.verify(path, "0" * 64)
    one_line(error)


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(FILES[hub.CONFIG_FILE]), **changes}).encode()


ARGS = json.loads(FILES[hub.CONFIG_FILE])["model_args"]
WEIGHTS = json.loads(FILES[hub.CONFIG_FILE])["pretrained_cfg"]
BAD_CONFIGS = {
    "empty": (b"", "not valid JSON"),
    "binary": (bytes(range(256)), "not valid JSON"),
    "half": (FILES[hub.CONFIG_FILE][:100], "not valid JSON"),
    "deep": (b"[" * 100_000, "not valid JSON"),
    "a list": (b"[]", "expected a table"),
    "NaN": (changed(num_classes=float("nan")), "NaN is no JSON number"),
    "unknown field": (changed(evil=1), "unknown field 'evil'"),
    "missing field": (b"{}", "lacks the field 'architecture'"),
    "unknown decoder": (changed(model_args={**ARGS, "decoder": "pspnet"}), "expected one of uper"),
    "wrong type": (changed(model_args={**ARGS, "width": "wide"}), "expected int"),
    "a million channels": (changed(model_args={**ARGS, "width": 10**6}), "expected 8 to 4096"),
    "classes that disagree": (changed(num_classes=4), "disagree"),
    "names that disagree": (changed(label_names=["a", "b", "c"]), "differ"),
    "weights of another kind": (changed(pretrained_cfg=3), "expected a table"),
    "mean of another kind": (changed(pretrained_cfg={**WEIGHTS, "mean": "grey"}), "expected a list"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs(tmp_path: Path, case: str) -> None:
    content, reason = BAD_CONFIGS[case]
    with pytest.raises(ConfigError, match=reason) as error:
        read_manifest(write(tmp_path / "config.json", content))
    one_line(error)


def test_a_config_of_absurd_length(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bytes"):
        read_manifest(write(tmp_path / "config.json", b" " * (2**24 + 1)))
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        read_manifest(tmp_path / "absent" / "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*json.loads(FILES[hub.CONFIG_FILE])]), JSON)
def test_any_value_in_any_field_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "config.json"
    try:
        found = read_manifest(write(path, changed(**{name: value})))
    except ConfigError:
        return
    assert found == manifest(**{name: value})


def test_pretrained_cfg_has_timms_keys_and_comes_back() -> None:
    weights = manifest().pretrained_cfg
    data = flatten(weights)
    assert data["mean"] == weights.preprocess.mean
    assert "preprocess" not in data
    assert unflatten(data) == weights
