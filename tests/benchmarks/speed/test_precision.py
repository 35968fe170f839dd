"""The suite precision on rendered scenes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from benchmarks.speed import benchmark_precision, precision
from ddsm_zoo import create_model, save_pretrained
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.transforms import EvalTransform
from ddsm_zoo.zoo.factory import resolve_data_config
from ddsm_zoo.zoo.publishing import describe_weights
from tests.support.command_line import run_speed
from tests.support.tiny_weights import WEIGHTS

SCENES = "scenes:2"


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A tiny model whose two likeliest classes are so close that bfloat16 cannot always tell them apart."""
    torch.manual_seed(3)
    model = create_model("uper_ddsm_tiny", num_classes=3)
    with torch.no_grad():
        model.classifier.weight[1] = model.classifier.weight[0] + 0.003 * torch.randn_like(model.classifier.weight[0])
    describe_weights(model, WEIGHTS)
    save_pretrained(model.eval(), tmp_path / "model")
    return f"local-dir:{tmp_path / 'model'}"


def test_agreement_is_the_share_of_equal_classes(saved: str) -> None:
    figures = benchmark_precision(saved, SCENES)
    full = create_model(saved, pretrained=True).fuse()
    half = copy.deepcopy(full).bfloat16()
    scenes = open_dataset(SCENES, "val", EvalTransform(resolve_data_config(full)))
    with torch.inference_mode():
        equal = [
            full(image[None]).argmax(1) == half(image[None].bfloat16()).argmax(1)
            for image in (scenes[index][0] for index in range(2))
        ]
    expected = torch.stack(equal).double().mean().item()
    assert 0.5 < expected < 1
    assert figures.rows[1]["agreement"] == pytest.approx(expected, abs=0.002)  # in another memory format
    assert [(row["dtype"], row["images"], len(row["seconds"])) for row in figures.rows] == [
        ("fp32", 2, 2),
        ("bf16", 2, 2),
    ]
    assert figures.rows[1]["ratio"] == pytest.approx(figures.rows[0]["median"] / figures.rows[1]["median"])


@pytest.mark.parametrize("unit", ["avx512_bf16", None])
def test_speed_counts_where_the_processor_has_the_instructions(
    saved: str, unit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {**precision.environment(), "gpu": None, "bf16": unit}
    monkeypatch.setattr(precision, "environment", lambda: machine)
    out = tmp_path / "precision.json"
    result = run_speed("--suite", "precision", "--model", saved, "--data", "scenes:1", "--json", out)
    speed, agreement = json.loads(out.read_text())["bars"]
    assert agreement["holds"] == (agreement["value"] >= 0.995)
    shown = " ".join(result.output.split())
    if unit is None:
        assert speed["holds"] is None
        assert "bf16, times faster: not measured on this machine, this processor has no instructions" in shown
    else:
        assert speed["holds"] == (speed["value"] >= 1.5)
        assert "not measured" not in shown
