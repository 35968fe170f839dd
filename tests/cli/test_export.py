"""The command that writes a model as a file, and the file in the hands of somebody who has nothing but ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ddsm_zoo
from ddsm_zoo.config import Preprocess
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.export.export import ExportOptions, export
from ddsm_zoo.export.program import ExportError
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils.files import sha256_of
from tests.support.command_line import run_command
from tests.support.errors import raises

DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"
ENLARGING = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.5), min_size=(120, 160))


def model_without_modules() -> Segmenter:
    """Small and quick to trace; tests/export/test_program.py goes through a larger one."""
    torch.manual_seed(0)
    model = ddsm_zoo.create_model("uper_tiny", num_classes=len(CAMVID), labels=CAMVID)
    model.provenance = dataclasses.replace(model.provenance, preprocess=ENLARGING)
    nn.init.normal_(model.classifier.weight, std=1.0)  # several classes win
    return model.eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    ddsm_zoo.save_pretrained(model_without_modules(), folder)
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def dynamic(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file for any size that takes and gives 8 bits, and what the command reported of it."""
    path = tmp_path_factory.mktemp("dynamic") / "street.onnx"
    options = ["--dynamic", "--with-preprocess", "--argmax", "--data", "scenes:1", "-o", path, "--json", "-"]
    return path, json.loads(run_command("export", tiny, *options).stdout)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which there is nothing."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def serving_example() -> str:
    """The Python in docs/export.md that runs a file."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "InferenceSession" in block)
    return code


def test_one_file_agrees_at_all_sizes(dynamic: tuple[Path, dict[str, Any]]) -> None:
    path, figures = dynamic
    assert [row["size"] for row in figures["agreement"]] == [[64, 64], [65, 97], [360, 480], [33, 500]]
    assert all(row["argmax"] >= 0.9999 for row in figures["agreement"])
    assert figures["bytes"] == path.stat().st_size
    assert figures["miou"]["file"] == pytest.approx(figures["miou"]["model"], abs=1e-3)


@pytest.mark.parametrize("size", [(90, 121), (200, 301)])
def test_the_example_in_the_docs_serves_the_file_without_this_package(
    dynamic: tuple[Path, dict[str, Any]], tiny: str, empty: Path, size: tuple[int, int]
) -> None:
    (empty / "street.onnx").write_bytes(dynamic[0].read_bytes())
    Image.fromarray(render_scene(3, size)[0]).save("street.png")
    code = serving_example()
    assert len(code.splitlines()) <= 20
    assert "ddsm" not in code
    assert "torch" not in code
    exec(compile(code, str(DOCS), "exec"), {})
    found = np.asarray(Image.open("classes.png"))
    expected = np.asarray(ddsm_zoo.Predictor(tiny)("street.png").color())
    assert found.shape == expected.shape
    # where the picture is enlarged, its classes are brought back by nearest neighbors, and ours by their scores
    assert (found == expected).all(axis=2).mean() >= (0.97 if size == (90, 121) else 0.999)
    assert {path.name for path in empty.iterdir()} == {"street.onnx", "street.png", "classes.png"}


def test_the_file_says_what_it_needs_and_what_its_classes_mean(dynamic: tuple[Path, dict[str, Any]], tiny: str) -> None:
    about = onnxruntime.InferenceSession(dynamic[0]).get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == list(CAMVID.names)
    assert [tuple(color) for color in json.loads(about["palette"])] == list(CAMVID.palette)
    assert tuple(json.loads(about["mean"])) == ENLARGING.mean
    assert tuple(json.loads(about["std"])) == ENLARGING.std
    assert tuple(json.loads(about["min_size"])) == ENLARGING.min_size
    assert about["sha256"] == sha256_of(Path(tiny.removeprefix("local-dir:")) / "model.safetensors")
    assert bytes(Path(ddsm_zoo.__file__).parent) not in dynamic[0].read_bytes()


def test_torch_format(empty: Path, tiny: str) -> None:
    assert "same class" in run_command("export", tiny, "--format", "torch", "--argmax", "--size", "50", "70").stdout
    extra = {"metadata.json": ""}
    program = torch.export.load(empty / "uper_tiny.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"])["output"] == "uint8 classes (1, H, W)"
    assert bytes(Path(ddsm_zoo.__file__).parent) not in (empty / "uper_tiny.pt2").read_bytes()
    image = torch.randn(1, 3, 50, 70)
    with torch.inference_mode():
        expected = ddsm_zoo.create_model(tiny, pretrained=True).eval()(image).argmax(1)
    module = program.module()
    classes = module(image)
    assert classes.dtype == torch.uint8
    assert (classes == expected).float().mean() >= 0.999
    with pytest.raises(AssertionError, match="Guard failed"):  # one size is for that size alone
        module(torch.randn(1, 3, 50, 71))


def test_eight_bits_with_ranges_of_a_folder(empty: Path, tiny: str) -> None:
    (empty / "images").mkdir()
    for seed in range(3):
        Image.fromarray(render_scene(seed, (64, 96))[0]).save(f"images/{seed}.png")
    options = ["--int8", "--images", "images", "--size", "64", "96", "--json", "-"]
    figures = json.loads(run_command("export", tiny, *options).stdout)
    (row,) = figures["agreement"]
    assert row["size"] == [64, 96]
    assert row["argmax"] >= 0.9
    assert row["difference"] > 0
    kinds = {node.op_type for node in onnx.load(empty / "uper_tiny.onnx").graph.node}
    assert "DequantizeLinear" in kinds
    before = sum(parameter.numel() for parameter in ddsm_zoo.create_model(tiny).parameters()) * 4
    assert figures["bytes"] == (empty / "uper_tiny.onnx").stat().st_size < before


class OtherwiseWhenTraced(nn.Module):
    """What must not happen: a program that does not do what the model does."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits + 0.01 if torch.compiler.is_compiling() else logits


def test_a_file_that_disagrees_is_not_kept(tmp_path: Path) -> None:
    model = model_without_modules()
    model.classifier = nn.Sequential(model.classifier, OtherwiseWhenTraced())
    path = tmp_path / "model.pt2"
    path.write_bytes(b"an older one")
    with raises(ExportError, kind="export-differs", expected=1e-4):
        export(model, path, ExportOptions(format="torch", size=(40, 56)))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"an older one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dynamic", "--size", "40", "56"], "expected one of them"),
        (["--size", "0", "56"], "size is 0 x 56"),
        (["--size", "40", "56", "--data", "scenes:1"], "images have sizes of their own"),
        (["--format", "torch", "--int8"], "only ONNX files have 8 bits"),
        (["--images", "."], "no images in the folder"),
        (["--size", str(2**22), str(2**22)], "not enough memory to export for this size; choose a smaller one"),
        (["-o", "."], "cannot write"),
        (["-o", "model.pt2"], "the file is called model.pt2, expected a name ending in .onnx"),
        (["--format", "torch", "-o", "model"], "the file is called model, expected a name ending in .pt2"),
        (["--json", "."], "cannot write"),
    ],
)
def test_what_cannot_be(empty: Path, tiny: str, options: list[str], message: str) -> None:
    assert message in run_command("export", tiny, *options, fails=True).stderr
    assert not list(empty.iterdir())


def test_images_that_cannot_be_read_are_refused_before_tracing(empty: Path, tiny: str) -> None:
    (empty / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in run_command("export", tiny, "--images", ".", fails=True).stderr
    assert [path.name for path in empty.iterdir()] == ["broken.png"]


def test_models_that_cannot_be(empty: Path) -> None:
    assert "without task weights" in run_command("export", "uper_tiny", fails=True).stderr
    assert "did you mean uper_tiny" in run_command("export", "uper_tinny", fails=True).stderr
    assert not list(empty.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_a_package_of_the_extra(package: str, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ddsm_zoo.export.onnx", raising=False)
    monkeypatch.delattr("ddsm_zoo.export.onnx", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    expected = f"error: ONNX files need the package {package}: pip install 'ddsm-zoo[export]'"
    assert expected in run_command("export", tiny, fails=True).stderr
