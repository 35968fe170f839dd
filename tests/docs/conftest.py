"""Where a reader of the pages stands."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from ddsm_zoo.data.kinds import DATASET_KINDS
from ddsm_zoo.training import recipe
from ddsm_zoo.zoo import registry, table
from tests.support import stand_ins
from tests.support.hub_server import HubServer, guarded_server
from tests.support.pages import ROOT
from tests.support.small_networks import use_small_networks

BUNDLED = "uper_ddsm_lite0_camvid"

server = pytest.fixture(guarded_server)


def without_min_size(entry: table.Entry) -> table.Entry:
    assert entry.weights is not None
    preprocess = replace(entry.preprocess, min_size=None)
    return replace(entry, preprocess=preprocess, weights=replace(entry.weights, preprocess=preprocess))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name, which each page gets a copy of."""
    folder = tmp_path_factory.mktemp("stand-ins")
    stand_ins.prepare(folder)
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a reader: the stand-ins, an empty cache, and a Hub of its own."""
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder, symlinks=True)
    stand_ins.publish(server)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    archives = tmp_path / "torch-hub"
    archives.mkdir()
    (archives / "OWNER_ddsm-zoo_main").symlink_to(ROOT, target_is_directory=True)
    (archives / "trusted_list").write_text("OWNER_ddsm-zoo\n")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(archives))
    # copies, because pages may register models and data sets; its bundled model does not enlarge small pictures
    monkeypatch.setattr(recipe, "FOLDER", folder / stand_ins.RECIPES)
    monkeypatch.setattr(DATASET_KINDS, "_known", dict(DATASET_KINDS))
    monkeypatch.setattr(registry, "_TABLE", {**registry._TABLE, BUNDLED: without_min_size(registry._TABLE[BUNDLED])})
    use_small_networks(monkeypatch)
    return folder
