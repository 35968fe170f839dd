"""Rows of the table: the paper's names, geometry and figures, and pins of published weights."""

from __future__ import annotations

import re

import pytest

from ddsm_zoo.labels import CAMVID, CITYSCAPES
from ddsm_zoo.zoo import registry, table

NAMES = registry.list_models()
# Tables 1, 3 and 4 of the paper
PUBLISHED = {
    "uper_r50_cityscapes": 78.39,
    "uper_dcn_r50_cityscapes": 78.51,
    "uper_ddsm_s_r50_cityscapes": 79.25,
    "uper_ddsm_c_r50_cityscapes": 78.99,
    "uper_ddsm_r50_cityscapes": 79.65,
    "deeplabv3plus_r50_cityscapes": 77.76,
    "deeplabv3plus_dcn_r50_cityscapes": 78.09,
    "deeplabv3plus_ddsm_s_r50_cityscapes": 78.34,
    "deeplabv3plus_ddsm_c_r50_cityscapes": 78.22,
    "deeplabv3plus_ddsm_r50_cityscapes": 78.57,
    "uper_ddsm_r101_cityscapes": 81.7,
    "uper_ddsm_r101_camvid": 77.1,
    "uper_ddsm_r101_camvid_cs": 80.6,
}


@pytest.mark.parametrize(("name", "miou"), PUBLISHED.items())
def test_every_row_of_the_papers_tables_has_a_name(name: str, miou: float) -> None:
    assert name in NAMES
    weights = registry.find(name).weights
    assert weights is not None
    assert list(weights.published.values()) == [miou]
    assert weights.metrics == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_consistent(name: str) -> None:
    entry = registry.find(name)
    assert re.fullmatch(r"(uper|deeplabv3plus)(_dcn|_ddsm|_ddsm_s|_ddsm_c)?_(r\d+|lite\d|tiny)(_\w+)?", name)
    assert entry.name == name
    if entry.weights is None:
        return
    labels = {"cityscapes": CITYSCAPES, "camvid": CAMVID}[entry.weights.dataset]
    assert entry.weights.labels == labels
    assert entry.config.num_classes == len(labels)
    assert entry.weights.uri.partition("@")[0] in (f"hf-hub:ddsm-zoo/{name}", f"bundled:{name}.safetensors")
    assert entry.published == (entry.weights.uri.startswith("bundled:") or "@" in entry.weights.uri)
    assert entry.weights.recipe is not None
    assert entry.weights.preprocess.size is not None


def test_the_papers_geometry() -> None:
    r50, r101 = registry.model_config("uper_ddsm_r50_cityscapes"), registry.model_config("uper_ddsm_r101_cityscapes")
    assert (r50.fused_stages, r50.ddsm.pixels, r50.ddsm.channels) == ((2, 3), 9, 9)
    assert (r101.fused_stages, r101.ddsm.pixels, r101.ddsm.channels) == ((2, 3, 4), 25, 9)
    assert r101 == registry.model_config("uper_ddsm_r101")


def test_a_publication_pins_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    publication = table.Publication(commit="c" * 40, sha256="0" * 64, metrics={"miou (val)": 80.0})
    monkeypatch.setattr(registry, "_TABLE", table.build_table({"uper_ddsm_r101_camvid_cs": publication}))
    assert registry.list_pretrained("*_r101_*") == ["uper_ddsm_r101_camvid_cs"]
    weights = registry.find("uper_ddsm_r101_camvid_cs").weights
    assert weights is not None
    assert weights.uri == f"hf-hub:ddsm-zoo/uper_ddsm_r101_camvid_cs@{'c' * 40}"
    assert (weights.sha256, weights.metrics) == ("0" * 64, {"miou (val)": 80.0})
