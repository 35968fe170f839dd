"""Parts that users register work by name: created, trained, saved, loaded, and refused in one line where unknown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import ddsm_zoo
from ddsm_zoo.config import ModelConfig, Preprocess
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.layers import ConvNormAct, resize
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.utils.registry import DECODERS, FUSIONS, UnregisteredError
from ddsm_zoo.zoo.table import BACKBONES
from tests.support.errors import raises
from tests.support.tiny_weights import logits

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
def own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that a test registers are gone after it."""
    for table in (DECODERS, FUSIONS, BACKBONES):
        monkeypatch.setattr(table, "_known", dict(table))


@pytest.fixture
def registered(own_parts: None) -> None:
    """A fusion, a decoder and a backbone."""
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
        with raises(UnregisteredError, kind="unregistered", name="gated"):
            load(tmp_path)


@pytest.mark.parametrize(("register", "part"), [(ddsm_zoo.register_fusion, Gate), (ddsm_zoo.register_decoder, Sum)])
@pytest.mark.parametrize("name", ["", "Mine", "my-part", "1st"])
def test_names_that_no_identifier_holds_are_refused(register: object, part: type[nn.Module], name: str) -> None:
    with raises(ValueError, kind="bad-name", name=name):
        register(name, part)


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize(("register", "part"), [(ddsm_zoo.register_fusion, 3), (ddsm_zoo.register_decoder, Gate)])
def test_what_cannot_be_such_a_part_is_refused(register: object, part: object) -> None:
    with raises(TypeError, name="mine", got=part):
        register("mine", part)
    assert not {"mine"} & (DECODERS.keys() | FUSIONS.keys())


def test_names_of_the_zoo_are_taken() -> None:
    for register, name, part in ((ddsm_zoo.register_fusion, "ddsm", Gate), (ddsm_zoo.register_decoder, "uper", Sum)):
        with raises(ValueError, kind="bad-name", name=name):
            register(name, part)
    with raises(ValueError, kind="bad-name", name="r50"):
        ddsm_zoo.register_backbone("r50", "resnet50")


AMBIGUOUS = {
    "uper_lite0": lambda: ddsm_zoo.register_fusion("lite0", Gate),  # or the plain UPerNet on lite0
    "uper_ddsm": lambda: ddsm_zoo.register_decoder("uper_ddsm", Sum),  # or UPerNet with DDSM
    "uper_dcn_r50": lambda: ddsm_zoo.register_backbone("dcn_r50", "resnet50"),  # or dcn on r50
}


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_name_never_changes_its_meaning(name: str) -> None:
    AMBIGUOUS[name]()
    for ask in (
        ddsm_zoo.list_models,
        lambda: ddsm_zoo.create_model(name, backbone="r50"),
        lambda: ddsm_zoo.is_model(name),
    ):
        with raises(ValueError, kind="bad-name", name=name):
            ask()


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize(
    ("timm_name", "options"),
    [("hf-hub:org/name", {}), ("resnet50", {"width": 1}), ("resnet50", {"fused_stages": (1,)})],
)
def test_a_backbone_that_no_model_can_have_is_not_registered(timm_name: str, options: dict[str, object]) -> None:
    before = ddsm_zoo.list_models()
    with raises(ConfigError, kind="config"):
        ddsm_zoo.register_backbone("mine", timm_name, **options)
    assert ddsm_zoo.list_models() == before


@pytest.mark.usefixtures("own_parts")
def test_a_registered_backbone_says_what_its_input_is() -> None:
    gray = Preprocess(mean=(0.1, 0.1, 0.1), std=(0.9, 0.9, 0.9))
    ddsm_zoo.register_backbone("told", "test_resnet.r160_in1k", width=16, preprocess=gray)
    ddsm_zoo.register_backbone("untold", "test_resnet.r160_in1k", width=16)
    for name in ("uper_told", "uper_ddsm_told"):
        assert ddsm_zoo.create_model(name).provenance.preprocess == gray
    assert ddsm_zoo.create_model("uper", backbone="told").provenance.preprocess == gray
    known = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert ddsm_zoo.create_model("uper_untold").provenance.preprocess.mean == known.mean != Preprocess().mean


@pytest.mark.usefixtures("own_parts")
def test_a_registered_decoder_has_the_fused_stages_of_the_backbone() -> None:
    ddsm_zoo.register_decoder("sum", Sum)
    for backbone in ("r50", "lite0"):
        assert ddsm_zoo.model_config(f"sum_{backbone}") == replace(
            ddsm_zoo.model_config(f"uper_{backbone}"), decoder="sum"
        )


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
    assert "--plugin MODULE" in unknown.stderr
    absent = command_line(tmp_path, "--plugin", "yours", "list")
    assert (absent.returncode, len(absent.stderr.strip().splitlines())) == (2, 1)
    assert "yours" in absent.stderr


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        ("./twice.py", "such as mine for the file mine.py"),
        ("folder/twice", "such as mine for the file mine.py"),
        ("twice.py", "such as mine for the file mine.py"),
        ("", "such as mine for the file mine.py"),
        ("twice", "--plugin twice: a fusion named 'ddsm' exists already"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(tmp_path: Path, plugin: str, reason: str) -> None:
    (tmp_path / "twice.py").write_text('import ddsm_zoo\nddsm_zoo.register_fusion("ddsm", object)\n')
    found = command_line(tmp_path, "--plugin", plugin, "list")
    assert (found.returncode, len(found.stderr.strip().splitlines())) == (2, 1), found.stderr
    assert reason in found.stderr
