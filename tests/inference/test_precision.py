"""Precision "auto": bf16 where the machine has it, it is faster and finds the same classes; else fp32."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddsm_zoo import Predictor, create_model
from ddsm_zoo.inference import precision
from ddsm_zoo.inference.modes import full_image

CPU = torch.device("cpu")


class Timed(nn.Module):
    """Two classes by the sign of a product, which takes its time in float32, in bfloat16 or in neither."""

    def __init__(self, slow: str, margin: float = 1.0) -> None:
        super().__init__()
        self.slow, self.margin = slow, margin
        self.weight = nn.Parameter(torch.ones(1, 3, 1, 1))
        self.seen: list[tuple[torch.Size, torch.dtype]] = []

    def forward(self, image: Tensor) -> Tensor:
        out = nn.functional.conv2d(image, self.weight)
        self.seen.append((image.shape, out.dtype))
        time.sleep(0.02 if str(out.dtype) == self.slow else 0.004)
        odd = torch.full_like(out, self.margin if out.dtype == torch.bfloat16 else 1.0)
        return torch.cat((odd, -odd), 1)


@pytest.fixture
def bf16_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with instructions for bfloat16, wherever the test runs."""
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)


@pytest.mark.usefixtures("bf16_unit")
@pytest.mark.parametrize(
    ("model", "chosen", "reason"),
    [
        (Timed("torch.float32"), "bf16", "times faster than fp32 here, the same class for 100.00% of the pixels tried"),
        (Timed("torch.bfloat16"), "fp32", "times as long here"),
        (Timed("torch.float32", margin=-1.0), "fp32", "bf16 gives another class to 100.00% of the pixels tried"),
        (Timed("torch.float32").double(), "fp32", "the model itself is float64"),
    ],
    ids=["faster", "slower", "disagrees", "float64"],
)
def test_bf16_must_be_faster_and_agree(
    model: Timed, chosen: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    predict = full_image(model, "auto")
    with caplog.at_level(logging.INFO, "ddsm_zoo"):
        for _ in range(2):
            predict(torch.randn(1, 3, 300, 280))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"precision auto: {chosen}, ")
    assert reason in line
    shape, dtype = model.seen[-1]
    assert shape == (1, 3, 300, 280)
    assert (dtype == torch.bfloat16) == (chosen == "bf16")
    assert {shape[-2:] for shape, _ in model.seen[:-2]} <= {(256, 256)}
    assert precision.settled_precision(model, "auto") == chosen


@pytest.mark.usefixtures("bf16_unit")
@pytest.mark.parametrize(("gain", "chosen"), [(1.05, "fp32"), (1.15, "bf16")])
def test_a_small_gain_is_not_worth_the_rounding(gain: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compare_speed", lambda full, half, device: gain)
    assert precision.choose_precision(Timed("neither"), torch.randn(1, 3, 8, 8)) == chosen


def test_a_machine_without_bf16_tries_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    model = Timed("torch.float32")
    with caplog.at_level(logging.INFO, "ddsm_zoo"):
        full_image(model, "auto")(torch.randn(1, 3, 8, 8))
    assert [dtype for _, dtype in model.seen] == [torch.float32]
    assert caplog.records[0].getMessage() == "precision auto: fp32, the cpu has no instructions for bfloat16"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_tile": False}, False),
    ],
)
def test_processors_with_instructions(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision.has_bf16(CPU) is expected
    assert precision.has_bf16(torch.device("meta")) is False


@pytest.mark.usefixtures("bf16_unit")
@pytest.mark.parametrize("tile", [None, 768, "auto"])
def test_predictor_tries_the_middle_of_its_first_picture(tile: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Tensor] = []

    def note(model: nn.Module, image: Tensor) -> str:
        tried.append(image)
        return "fp32"

    monkeypatch.setattr("ddsm_zoo.inference.predictor.choose_precision", note)
    monkeypatch.setattr("ddsm_zoo.inference.modes.choose_precision", lambda model, image: "fp32")
    model = create_model("uper_ddsm_tiny", num_classes=3)
    predictor = Predictor(model, precision="auto", tile=tile)
    picture = Image.radial_gradient("L").resize((320, 288)).convert("RGB")
    predictor(picture)
    expected = predictor.transform(picture.crop((32, 16, 288, 272)))[None]
    torch.testing.assert_close(tried[0], expected)
