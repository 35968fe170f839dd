"""One traced program for images of any size: compiled, as a torch.export file and as ONNX, beside the eager model.

Tracing takes many seconds a model; benchmarks/speed/export.py goes through all of them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import ddsm_zoo
from ddsm_zoo.config import DDSMConfig, ModelConfig, Preprocess
from ddsm_zoo.export import onnx as onnx_file
from ddsm_zoo.export.program import Classes, ExportError, Normalize, Run, compare, open_torch, trace, write_torch
from ddsm_zoo.layers import DDSM, build_fusion
from ddsm_zoo.models import Segmenter
from tests.support.errors import raises
from tests.support.full_disk import full_disk

SIZES = [(64, 64), (65, 97), (360, 480), (33, 500)]
ANY = {2: "height", 3: "width"}
CONFIG = DDSMConfig(width=16, pool=4, positions=5)


def trained(model: Segmenter) -> Segmenter:
    """No weight is at its initial value, not even the samplers' zeros, and several classes win."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.train()(torch.rand(2, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Segmenter:
    """With both affinities and the refinement, on dilated features that timm pads by TensorFlow's rule."""
    return trained(ddsm_zoo.create_model("deeplabv3plus_ddsm_tiny", num_classes=5, stride=2)).fuse()


@pytest.fixture(scope="module")
def program(model: Segmenter) -> ExportedProgram:
    return trace(model, torch.rand(1, 3, 96, 160), ANY)


def assert_same(model: nn.Module, run: Run, sizes: list[tuple[int, int]]) -> None:
    for size in sizes:
        image = 2 * torch.rand(1, 3, *size) - 1
        with torch.inference_mode():
            logits = model(image)
        agreement = compare(size, [(logits, run(image))])
        assert logits.argmax(1).unique().numel() > 1
        assert agreement.difference is not None
        assert agreement.difference <= 1e-4, agreement
        assert agreement.argmax >= 0.9999, agreement


def test_one_torch_file_is_for_any_size(model: Segmenter, program: ExportedProgram, tmp_path: Path) -> None:
    write_torch(program, tmp_path / "model.pt2", {})
    assert_same(model, open_torch(tmp_path / "model.pt2"), SIZES)


def test_one_onnx_file_is_for_any_size(model: Segmenter, program: ExportedProgram, tmp_path: Path) -> None:
    onnx_file.write_onnx(program, tmp_path / "model.onnx", "logits", {})
    assert_same(model, onnx_file.open_onnx(tmp_path / "model.onnx"), [*SIZES, (20, 7)])
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version >= 18


class Pyramid(nn.Module):
    """Two levels of an image under a fusion."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(3, 8, 8, stride=8)
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        return self.fusion(self.low(x), self.high(x))


def test_one_compiled_graph_is_for_any_size() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def remember(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    pyramid = Pyramid(DDSM(8, CONFIG)).eval()
    compiled = torch.compile(pyramid, fullgraph=True, dynamic=True, backend=remember)
    for size in ((64, 96), (40, 120), (200, 64)):  # of a square first image torch assumes that all will be squares
        image = torch.rand(1, 3, *size)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(image), pyramid(image), atol=1e-5, rtol=0)
    assert len(graphs) == 1


def test_one_logit_becomes_ids_by_its_threshold(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 1, 1)
    program = trace(nn.Sequential(network, Classes(0.3)), torch.rand(1, 3, 40, 50), ANY)
    write_torch(program, tmp_path / "ids.pt2", {})
    image = torch.randn(1, 3, 60, 70)
    with torch.inference_mode():
        logits = network(image)
        expected = 1 / (1 + np.exp(-logits[:, 0].double().numpy())) > 0.3
    ids = open_torch(tmp_path / "ids.pt2")(image)
    assert ids.dtype == torch.uint8
    np.testing.assert_array_equal(ids.numpy(), expected)
    assert compare((60, 70), [(logits, ids)], 0.3).argmax == 1.0
    assert compare((60, 70), [(logits, ids)], 0.6).argmax < 1.0
    assert compare((60, 70), [(logits, logits)]).difference == 0.0


def test_a_deformable_convolution_in_onnx(tmp_path: Path) -> None:
    pyramid = Pyramid(
        build_fusion(8, ModelConfig(decoder="uper", backbone="test_resnet.r160_in1k", fusion="dcn"))
    ).eval()
    nn.init.normal_(pyramid.fusion.offset.weight, std=0.5)
    program = trace(pyramid, torch.rand(1, 3, 64, 96), {})
    onnx_file.write_onnx(program, tmp_path / "deformed.onnx", "out", {})
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = pyramid(image)
    torch.testing.assert_close(onnx_file.open_onnx(tmp_path / "deformed.onnx")(image), expected, atol=1e-5, rtol=0)


def test_what_depends_on_the_pixels_cannot_be_traced() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with raises(ExportError, kind="export", name="Chooses"):
        trace(Chooses(), torch.rand(1, 3, 40, 50), ANY)


def test_normalize_is_the_transform_that_models_are_trained_with() -> None:
    preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = ddsm_zoo.create_transform(preprocess)(picture)
    torch.testing.assert_close(Normalize(preprocess)(torch.from_numpy(picture)[None])[0], expected, atol=1e-6, rtol=0)


def test_classes_are_the_highest_logits() -> None:
    logits = torch.randn(2, 256, 3, 4)
    classes = Classes()(logits)
    assert classes.dtype == torch.uint8
    assert classes.tolist() == logits.argmax(1).tolist()


def test_agreement_counts_pixels_and_finds_the_largest_difference() -> None:
    logits = torch.tensor([[1.0, 0.0, 5.0, 2.0], [0.0, 1.0, 0.0, 3.0]]).view(1, 2, 1, 4)
    other = logits + torch.tensor([0.0, 0.25, 0.0, 2.0]).view(1, 1, 1, 4) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    both = compare((1, 4), [(logits, logits), (logits, other)])
    assert (both.difference, both.argmax) == (2.0, 7 / 8)
    damaged = logits.where(logits != 5, torch.nan)
    assert math.isnan(compare((1, 4), [(logits, logits), (logits, damaged), (logits, logits)]).difference)
    classes = compare((1, 4), [(logits, other.argmax(1).to(torch.uint8))])
    assert (classes.difference, classes.argmax) == (None, 3 / 4)


def test_eight_bits_keep_the_classes_of_a_clear_case(tmp_path: Path) -> None:
    """Which channel is the brightest, by a convolution whose answer rounding cannot change far from a tie."""
    module = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.dirac_(module.weight)
    nn.init.zeros_(module.bias)
    images = [torch.rand(1, 3, 40, 50) for _ in range(4)]
    onnx_file.write_onnx(trace(module, images[0], ANY), tmp_path / "exact.onnx", "logits", {"labels": "[]"})
    onnx_file.quantize(tmp_path / "exact.onnx", tmp_path / "rounded.onnx", images)
    written = onnx.load(tmp_path / "rounded.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in written.graph.node}
    assert {entry.key: entry.value for entry in written.metadata_props}["labels"] == "[]"
    image = torch.rand(1, 3, 64, 64)
    agreement = compare((64, 64), [(image, onnx_file.open_onnx(tmp_path / "rounded.onnx")(image))])
    assert agreement.argmax > 0.97
    assert 0 < agreement.difference < 0.02


def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path) -> None:
    """Torch's own writer ends the process."""
    program = trace(nn.Conv2d(3, 2000, 1), torch.zeros(1, 3, 8, 8), {})
    with full_disk(), pytest.raises(OSError, match="too large"):
        write_torch(program, tmp_path / "a.pt2", {})
