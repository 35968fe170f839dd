"""Publishing with the real client to a server in this process, and the whole way round."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from ddsm_zoo.hub import session
from ddsm_zoo.hub.download import fetch
from ddsm_zoo.hub.faults import HubError
from ddsm_zoo.hub.model_files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, write_files
from ddsm_zoo.hub.upload import push
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils.files import sha256_of
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.publishing import push_to_hub, save_pretrained
from tests.support.command_line import run_command
from tests.support.errors import raises
from tests.support.hub_server import TOKEN, HubServer, guarded_server
from tests.support.tiny_weights import logits, trained_model

FILES = {CONFIG_FILE: b"any text", CARD_FILE: b"# A card", WEIGHTS_FILE: bytes(range(256)) * 100}

server = pytest.fixture(guarded_server)
trained = pytest.fixture(scope="module")(trained_model)


def test_files_arrive_in_one_commit(server: HubServer, tmp_path: Path) -> None:
    address = push("someone/model", FILES)
    assert server.files("someone/model") == FILES
    assert len(server.repositories["someone/model"]) == 1
    assert [file.path.read_bytes() for file in fetch(address, *FILES, cache_dir=tmp_path)] == list(FILES.values())


def test_a_branch_and_a_pull_request_leave_main_alone(server: HubServer, tmp_path: Path) -> None:
    push("someone/model", FILES)
    other = {**FILES, CONFIG_FILE: b"other"}
    for options in ({"revision": "trial"}, {"create_pr": True}):
        address = push("someone/model", other, **options)
        assert server.files("someone/model") == FILES
        assert fetch(address, CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == b"other"
    assert server.files("someone/model", "trial") == other
    assert fetch("hf-hub:someone/model@trial", CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == b"other"


def test_a_private_repository(server: HubServer, tmp_path: Path) -> None:
    push("someone/model", FILES, private=True)
    push("someone/other", FILES)
    assert server.private == {"someone/model"}
    address = push("someone/model", {**FILES, CONFIG_FILE: b"newer"}, private=True)
    assert fetch(address, CONFIG_FILE, cache_dir=tmp_path)[0].path.read_bytes() == b"newer"


@pytest.mark.parametrize("is_private", [False, True])
def test_a_repository_that_others_may_see_or_not(server: HubServer, is_private: bool) -> None:
    """The client would publish, and leave the repository as it is."""
    push("someone/model", FILES, private=is_private)
    with raises(HubError, kind="hub-exists", name="hf-hub:someone/model", got=not is_private):
        push("someone/model", {**FILES, CONFIG_FILE: b"newer"}, private=not is_private)
    assert server.files("someone/model") == FILES


def test_the_token_that_is_given_is_used(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with raises(HubError, kind="hub-access", name="hf-hub:someone/model") as error:
        push("someone/model", FILES)
    assert "hf_another" not in str(error.value)
    push("someone/model", FILES, token=TOKEN)
    assert server.files("someone/model") == FILES


@pytest.mark.parametrize(
    ("method", "where", "status", "kind"),
    [
        ("POST", "/api/repos/create", 401, "hub-access"),
        ("POST", "/api/repos/create", 403, "hub-access"),
        ("POST", "/commit/main", 403, "hub-access"),
        ("POST", "/commit/main", 500, "hub"),
        ("POST", "/commit/main", 409, "hub"),
        ("PUT", "", 403, "hub-access"),
        ("POST", "/api/validate-yaml", 502, "hub"),
    ],
)
def test_a_refusing_server(
    server: HubServer, caplog: pytest.LogCaptureFixture, method: str, where: str, status: int, kind: str
) -> None:
    server.faults[method, where] = status
    with caplog.at_level(logging.DEBUG), raises(HubError, kind=kind, name="hf-hub:someone/model") as error:
        push("someone/model", FILES)
    assert status == 502 or f"HTTP {status}" in str(error.value)  # the client hides the status of a checked card
    assert TOKEN not in caplog.text + str(error.value)
    assert "someone/model" not in server.repositories  # nor an empty one
    server.faults.clear()
    push("someone/model", FILES)
    assert server.files("someone/model") == FILES


def test_a_failed_push_leaves_an_earlier_repository(server: HubServer) -> None:
    push("someone/model", FILES)
    server.faults["POST", "/commit/main"] = 500
    with pytest.raises(HubError):
        push("someone/model", {**FILES, CONFIG_FILE: b"newer"})
    assert server.files("someone/model") == FILES
    assert server.paths("DELETE") == []


def test_an_empty_repository_that_cannot_be_deleted_is_told(
    server: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.update({("POST", "/commit/main"): 500, ("DELETE", "/api/repos/delete"): 500})
    with raises(HubError, kind="hub", name="hf-hub:someone/model") as error:
        push("someone/model", FILES)
    assert "500" in str(error.value)
    assert "hf-hub:someone/model was created and is empty: delete it on the Hub, or push again" in caplog.text


def test_without_a_token_a_push_ends_before_the_model_is_looked_for(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    said = run_command("push", "local-dir:nowhere", "someone/model", fails=1).stderr
    assert "cannot publish hf-hub:someone/model: there is no token: log in with `hf auth login`, or set HF_TOK" in said
    assert server.requests == []


def test_a_server_that_is_down(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with raises(HubError, kind="hub-unreachable"):
        push("someone/model", FILES)


@pytest.mark.parametrize(
    ("repository", "options", "kind"),
    [
        ("model", {}, "address"),
        ("../model", {}, "address"),
        ("someone/model", {"revision": "../main"}, "address"),
        ("someone/model", {"revision": "v1", "create_pr": True}, "options"),
    ],
)
def test_what_cannot_be_published(server: HubServer, repository: str, options: dict[str, str], kind: str) -> None:
    with raises(ValueError, kind=kind):
        push(repository, FILES, **options)
    assert server.requests == []


@pytest.mark.parametrize("token", ["", "hf_a_secret\nX: y", "hf_\xe9"])
def test_a_token_that_is_none_is_not_repeated(server: HubServer, token: str) -> None:
    with raises(ValueError, kind="hub-access", name="token", got=None) as error:
        push("someone/model", FILES, token=token)
    assert TOKEN not in str(error.value)
    assert server.requests == []


@pytest.mark.parametrize("token", ["hf_a_secr\xe9t", "hf_a secret", "\u201chf_a_secret\u201d"])
def test_a_token_in_the_environment_that_is_none(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    for task in (
        lambda: push("someone/model", FILES),
        lambda: fetch("hf-hub:someone/model", CONFIG_FILE, cache_dir=tmp_path),
    ):
        with raises(HubError, kind="hub-access", got=None) as error:
            task()
        assert "HF_TOKEN" in str(error.value)
        assert "secr" not in str(error.value)
    assert server.requests == []


def test_a_server_that_stops_in_the_middle(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0.3)
    server.faults["PUT", ""] = "stall"
    with raises(HubError, kind="hub", name="hf-hub:someone/model"):
        push("someone/model", FILES)
    assert "someone/model" not in server.repositories


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0.2)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with raises(HubError, kind="hub-unreachable") as error:
            push("someone/model", FILES)
    assert error.value.__suppress_context__  # the client's text may repeat what is secret


# -- the whole way


def test_fetch_tune_save_push_fetch(server: HubServer, trained: Segmenter, tmp_path: Path) -> None:
    address = push_to_hub(trained, "someone/model")
    fetched = create_model(address, pretrained=True, cache_dir=tmp_path / "one")
    assert torch.equal(logits(fetched), logits(trained))

    tuned = create_model(address, pretrained=True, labels=["sky", "roads", "boat"], cache_dir=tmp_path / "one")
    optimizer = torch.optim.SGD(tuned.get_classifier().parameters(), lr=0.1)
    tuned.train()(torch.rand(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    expected = logits(tuned)
    assert not torch.equal(expected, logits(trained))

    tuned.save_pretrained(tmp_path / "saved")
    saved = create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    assert torch.equal(logits(saved), expected)
    again = saved.push_to_hub("someone/tuned", private=True)
    final = create_model(again, pretrained=True, cache_dir=tmp_path / "two")
    assert torch.equal(logits(final), expected)
    assert final.pretrained_cfg["labels"]["names"] == ("sky", "roads", "boat")
    assert final.pretrained_cfg["uri"] == again
    assert {"reused", "reinitialized"}.isdisjoint(final.pretrained_cfg)


def test_the_class_fetches_too(server: HubServer, trained: Segmenter, tmp_path: Path) -> None:
    commit = push_to_hub(trained, "someone/model", half=True).partition("@")[2]
    for source, options in (
        ("someone/model", {"cache_dir": tmp_path}),
        ("someone/model", {"cache_dir": tmp_path, "revision": commit}),
        (f"hf-hub:someone/model@{commit}", {"cache_dir": tmp_path}),
    ):
        model = Segmenter.from_pretrained(source, **options)
        assert not model.training
        torch.testing.assert_close(logits(model), logits(trained), atol=0.1, rtol=0.1)
    model.save_pretrained(tmp_path / "folder")
    assert torch.equal(logits(Segmenter.from_pretrained(tmp_path / "folder")), logits(model))
    with raises(ValueError, kind="options", name="revision", got="v1"):
        Segmenter.from_pretrained(tmp_path / "folder", revision="v1")


def test_what_is_published_says_what_it_is(server: HubServer, trained: Segmenter, tmp_path: Path) -> None:
    push_to_hub(trained, "someone/model")
    files = server.files("someone/model")
    assert sorted(files) == sorted((CARD_FILE, CONFIG_FILE, WEIGHTS_FILE))
    text = files[CARD_FILE].decode()
    assert 'create_model("hf-hub:someone/model", pretrained=True)' in text
    assert TOKEN not in text
    card = ModelCard(text).data
    facts = card.to_dict()
    assert (facts["license"], facts["datasets"], facts["library_name"]) == ("cc0-1.0", ["made-up"], "ddsm-zoo")
    assert [(result.metric_name, result.metric_value) for result in card.eval_results or []] == [("miou (val)", 71.5)]
    assert yaml.safe_load(text.split("---\n")[1])["pipeline_tag"] == "image-segmentation"
    write_files(tmp_path, files)
    save_pretrained(trained, tmp_path / "saved")
    assert sha256_of(tmp_path / WEIGHTS_FILE) == sha256_of(tmp_path / "saved" / WEIGHTS_FILE)
