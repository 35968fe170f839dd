"""Models that version 0.1.0 saved: the same logits, or one line where the module is read differently now."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

import ddsm_zoo
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises
from tests.support.tiny_weights import one_line

SAVED = Path(__file__).resolve().parents[1] / "golden" / "v0.1.0"


def test_a_saved_model_gives_the_logits_it_gave() -> None:
    recorded = load_file(SAVED / "uper_tiny" / "logits.safetensors")
    for model in (
        ddsm_zoo.from_pretrained(SAVED / "uper_tiny"),
        ddsm_zoo.Segmenter.from_pretrained(SAVED / "uper_tiny"),
        ddsm_zoo.create_model("uper_tiny", width=8, num_classes=3, checkpoint_path=SAVED / "uper_tiny").eval(),
    ):
        with torch.inference_mode():
            torch.testing.assert_close(model(recorded["image"]), recorded["logits"], atol=1e-3, rtol=1e-3)
        assert model.provenance.weights is not None
        assert model.provenance.weights.metrics == {"miou (val)": 71.5}
        assert model.provenance.labels is not None
        assert model.provenance.labels.names == ("road", "sky", "tree")


def test_the_module_of_that_version_is_refused(tmp_path: Path) -> None:
    shutil.copytree(SAVED / "uper_tiny", tmp_path / "saved")
    shutil.copy(SAVED / "uper_ddsm_tiny" / "config.json", tmp_path / "saved" / "config.json")
    for load in (ddsm_zoo.from_pretrained, ddsm_zoo.Segmenter.from_pretrained):
        with raises(ConfigError, kind="config", name="ddsm.reading", got=1) as error:
            load(tmp_path / "saved")
        one_line(error)
