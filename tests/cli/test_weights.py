"""The commands that move weights: save, push and import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch

import ddsm_zoo
from ddsm_zoo.utils.files import sha256_of
from tests.support.command_line import run_command
from tests.support.hub_server import TOKEN, HubServer, guarded_server
from tests.support.tiny_weights import logits, trained_model

Run = Callable[..., Any]

server = pytest.fixture(guarded_server)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    ddsm_zoo.save_pretrained(trained_model(), folder)
    return f"local-dir:{folder}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command in an empty folder; it never shows a token."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, fails: bool = False) -> Any:
        result = run_command(*arguments, fails=fails)
        assert TOKEN not in result.output
        return result

    return call


def test_a_bundle_needs_no_network(run: Run, tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("save", tiny, "bundle")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    original, copy = (ddsm_zoo.create_model(name, pretrained=True) for name in (tiny, "local-dir:bundle"))
    assert torch.equal(logits(copy), logits(original))
    recorded = json.loads((tmp_path / "bundle" / "config.json").read_text())["pretrained_cfg"]["sha256"]
    assert recorded == sha256_of(tmp_path / "bundle" / "model.safetensors")


def test_save_keeps_a_model_that_is_there(run: Run, tmp_path: Path, tiny: str) -> None:
    run("save", tiny, "bundle")
    before = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    for command in (
        ("save", "uper_ddsm_lite0_camvid", "bundle"),
        ("import", "x.pth", "bundle", "-m", tiny, "--classes", "2"),
    ):
        assert "cannot write bundle: it holds a model already" in run(*command, fails=True).stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()} == before


def test_push_prints_the_address_of_what_it_published(run: Run, tiny: str, server: HubServer) -> None:
    address = run("push", tiny, "someone/model", "--private", "--revision", "trial").stdout.strip()
    assert server.private == {"someone/model"}
    assert server.references["someone/model", "trial"] == address.partition("@")[2]
    model = ddsm_zoo.create_model(address, pretrained=True, cache_dir="cache")
    assert torch.equal(logits(model), logits(trained_model()))
    pull_request = run("push", tiny, "someone/model", "--create-pr").stdout.strip()
    assert server.references["someone/model", "refs/pr/1"] == pull_request.partition("@")[2]


def test_push_does_not_make_public_what_was_to_be_private(run: Run, tiny: str, server: HubServer) -> None:
    run("push", tiny, "someone/model")
    before = server.files("someone/model", "trial")
    refused = run("push", tiny, "someone/model", "--private", "--revision", "trial", fails=True)
    assert "someone/model exists and is public" in refused.stderr
    assert server.files("someone/model", "trial") == before == {}


def test_push_without_permission(run: Run, tiny: str, server: HubServer) -> None:
    server.token = "hf_another"
    assert "hf auth login" in run("push", tiny, "someone/model", fails=True).stderr
    assert "expected ORGANIZATION/NAME" in run("push", tiny, "model", fails=True).stderr
    assert "without task weights" in run("push", "uper_tiny", "someone/model", fails=True).stderr


def test_import_tells_what_became_of_each_tensor(run: Run, tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "theirs.pth")
    options = ("--model", "uper", "--backbone", "test_resnet", "--classes", "3", "--width", "32")
    result = run("import", "theirs.pth", "ours", *options, "--json", "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["mapped"]["bn1.weight"] == "backbone.body.bn1.weight"
    assert report["left_out"] == ["fc.weight", "fc.bias"]
    assert "freshly initialized: decoder." in result.stdout
    model = ddsm_zoo.create_model("local-dir:ours", pretrained=True)
    assert torch.equal(model.state_dict()["backbone.body.bn1.weight"], state["bn1.weight"])
    (tmp_path / "other.pth").write_bytes(b"nothing")
    assert "is damaged" in run("import", "other.pth", "others", *options, fails=True).stderr
