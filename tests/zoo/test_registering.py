"""Parts that users register work by name: created, trained, saved, loaded, and refused in one line where unknown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ddsm_zoo
from ddsm_zoo.config import ModelConfig
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.layers import ConvNormAct, resize
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.registry import DECODERS, FUSIONS, UnregisteredError
from ddsm_zoo.zoo.registry import BACKBONES
from tests.support.tiny_weights import logits, one_line

RECIPE = Recipe(model="uper_gated_tiny", epochs=1, batch_size=2, crop_size=(32, 32), scale=(0.2, 0.2), workers=0)


class Gate(nn.Module):
    """low + high where a learned gate of low lets it through."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return low + self.gate(low).sigmoid() * resize(high, (low.shape[-2], low.shape[-1]))


class Sum(nn.Module):
    """Every level brought to one width and to the finest size, and added up."""

    output_stride = 32

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        self.projections = nn.ModuleList(ConvNormAct(each, config.width) for each in channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = (features[0].shape[-2], features[0].shape[-1])
        levels = [resize(project(level), size) for project, level in zip(self.projections, features, strict=True)]
        return torch.stack(levels).sum(0)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fusion, a decoder and a backbone, which are gone after the test."""
    for table in (DECODERS, FUSIONS, BACKBONES):
        monkeypatch.setattr(table, "_known", dict(table))
    ddsm_zoo.register_fusion("gated", Gate)
    ddsm_zoo.register_decoder("sum", Sum)
    ddsm_zoo.register_backbone("small", "test_resnet.r160_in1k", width=16)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["uper_gated_tiny", "deeplabv3plus_gated_tiny", "sum_tiny", "uper_small", "sum_small"])
def test_a_registered_part_is_created_trained_saved_and_loaded(name: str, tmp_path: Path) -> None:
    assert name in ddsm_zoo.list_models()
    torch.manual_seed(0)
    model = ddsm_zoo.create_model(name, labels=CAMVID)
    ddsm_zoo.train(RECIPE, "scenes:2", tmp_path, model=model)
    for again in (
        ddsm_zoo.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True),
        ddsm_zoo.from_pretrained(tmp_path / "best"),
        ddsm_zoo.Segmenter.from_pretrained(tmp_path / "best"),
    ):
        kept, trained = again.state_dict(), model.state_dict()
        assert all(torch.equal(kept[tensor], trained[tensor]) for tensor in trained)
        assert logits(again).shape == (1, len(CAMVID), 37, 50)
        assert again.provenance.name == name
        assert again.provenance.labels == CAMVID


@pytest.mark.usefixtures("registered")
def test_a_recipe_names_a_registered_part(tmp_path: Path) -> None:
    summary = ddsm_zoo.train(RECIPE, "scenes:2", tmp_path, pretrained=False)
    assert ddsm_zoo.from_pretrained(tmp_path / "best").config.fusion == "gated"
    assert Path(summary["best"]).is_file()


def test_a_saved_model_of_an_unregistered_part_says_what_to_import(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FUSIONS, "_known", dict(FUSIONS))
        ddsm_zoo.register_fusion("gated", Gate)
        ddsm_zoo.save_pretrained(ddsm_zoo.create_model("uper_gated_tiny", num_classes=3), tmp_path)
    for load in (ddsm_zoo.from_pretrained, ddsm_zoo.Segmenter.from_pretrained):
        with pytest.raises(UnregisteredError, match="no fusion named 'gated'.*import") as error:
            load(tmp_path)
        one_line(error)


@pytest.mark.parametrize("register", [ddsm_zoo.register_fusion, ddsm_zoo.register_decoder])
@pytest.mark.parametrize("name", ["", "Mine", "my-part", "1st"])
def test_names_that_no_identifier_holds_are_refused(register: object, name: str) -> None:
    with pytest.raises(ValueError, match="expected lower-case letters") as error:
        register(name, Gate)
    one_line(error)


def test_names_of_the_zoo_are_taken() -> None:
    for register, name in ((ddsm_zoo.register_fusion, "ddsm"), (ddsm_zoo.register_decoder, "uper")):
        with pytest.raises(ValueError, match="exists already"):
            register(name, Gate)
    with pytest.raises(ValueError, match="exists already"):
        ddsm_zoo.register_backbone("r50", "resnet50")


PLUGIN = """
import ddsm_zoo
from torch import nn

class Low(nn.Module):
    def __init__(self, channels, config):
        super().__init__()

    def forward(self, low, high):
        return low

ddsm_zoo.register_fusion("low", Low)
"""


def command_line(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddsm_zoo", *arguments]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_command_line_imports_a_plugin_first(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    found = command_line(tmp_path, "--plugin", "mine", "info", "uper_low_tiny", "--size", "64")
    assert found.returncode == 0, found.stderr
    assert "uper_low_tiny" in found.stdout
    unknown = command_line(tmp_path, "info", "uper_low_tiny")
    assert (unknown.returncode, len(unknown.stderr.strip().splitlines())) == (2, 1)
    absent = command_line(tmp_path, "--plugin", "yours", "list")
    assert (absent.returncode, len(absent.stderr.strip().splitlines())) == (2, 1)
    assert "yours" in absent.stderr
