"""A small model with weights like trained ones, for the tests of how weights travel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddsm_zoo.config import Preprocess, WeightsSpec
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.publishing import describe_weights, save_pretrained

NAME = "uper_ddsm_tiny"
LABELS = LabelSpace.from_names(("road", "sky", "tree"))
WEIGHTS = WeightsSpec(
    uri="file:somewhere",
    dataset="made up",
    labels=LABELS,
    preprocess=Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), size=(40, 60)),
    license="cc0-1.0",
    recipe="none",
    metrics={"miou (val)": 71.5},
)


def trained_model() -> Segmenter:
    """No tensor is at its initial value, not even the modules' zeros."""
    torch.manual_seed(1)
    model = create_model(NAME, num_classes=len(LABELS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.train()(torch.rand(2, 3, 64, 64))  # moves the running statistics too
    describe_weights(model, WEIGHTS)
    return model.eval()


def saved_model(trained: Segmenter, tmp_path: Path) -> Path:
    """As a fixture, the folder in which the trained model is saved."""
    save_pretrained(trained, tmp_path / "saved")
    return tmp_path / "saved"


def logits(model: Segmenter) -> Tensor:
    """What the model makes of a picture of odd size, always the same one."""
    images = torch.rand(1, 3, 37, 50, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return model.eval()(images)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message of an error that a user reads, which must be one line."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def write(path: Path, content: bytes) -> Path:
    """The path, now with that content."""
    path.write_bytes(content)
    return path
