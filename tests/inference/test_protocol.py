from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddsm_zoo.inference.modes import multi_scale, sliding_window
from ddsm_zoo.inference.protocol import PROTOCOLS, InferenceProtocol
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises


def blurred(image: Tensor) -> Tensor:
    """Scores that depend on the surroundings and on the position: each way to run it gives another result."""
    columns = torch.arange(image.shape[-1], dtype=torch.float32)
    return torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False) + columns


def test_fields_compose_as_functions_do() -> None:
    image = torch.randn(1, 3, 12, 14)
    protocol = InferenceProtocol(crop=(6, 8), stride=(4, 5), scales=(0.5, 1.5), flip=True)
    expected = multi_scale(sliding_window(blurred, (6, 8), (4, 5)), (0.5, 1.5), flip=True)(image)
    assert torch.equal(protocol.apply(blurred)(image), expected)
    assert torch.equal(InferenceProtocol().apply(blurred)(image), blurred(image))
    mirrored = (blurred(image).softmax(1) + blurred(image.flip(-1)).softmax(1).flip(-1)) / 2
    torch.testing.assert_close(PROTOCOLS["flip"].apply(blurred)(image), mirrored)


def test_size_is_what_the_model_sees() -> None:
    seen = []

    def spy(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return image

    InferenceProtocol(size=(4, 6), scales=(0.5, 1.0)).apply(spy)(torch.zeros(2, 3, 8, 9))
    assert seen == [(2, 3, 2, 3), (2, 3, 4, 6)]


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_names(name: str) -> None:
    protocol = InferenceProtocol.load(name)
    assert protocol == PROTOCOLS[name]
    assert protocol.apply(blurred)(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 5, 7)


def test_the_papers_scales() -> None:
    assert (min(PROTOCOLS["multi_scale"].scales), max(PROTOCOLS["multi_scale"].scales)) == (0.5, 2.0)
    assert PROTOCOLS["multi_scale"].flip


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("crop = [720, 720]\nstride = [480, 480]\nscales = [1, 1.25]\nflip = true\n")
    expected = InferenceProtocol(crop=(720, 720), stride=(480, 480), scales=(1.0, 1.25), flip=True)
    assert InferenceProtocol.load(file) == expected


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("crop = [8, 8]", "options", "stride"),
        ("crop = [8, 8]\nstride = [9, 8]", "config", "stride"),
        ("scales = []", "config", "scales"),
        ("scales = [1.0, -1.0]", "config", "scales"),
        ("scales = [nan]", "config", "scales"),
        ("scales = [inf]", "config", "scales"),
        ("size = [0, 4]", "config", "size"),
        ("scale = [1.0]", "unknown-field", "scale"),
        ("flip = 1", "config", "bad.toml.flip"),
        ("flip =", "syntax", None),
    ],
)
def test_a_file_that_is_no_protocol(tmp_path: Path, text: str, kind: str, name: str | None) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with raises(ConfigError, kind=kind) as caught:
        InferenceProtocol.load(file)
    assert (caught.value.name or "").endswith(name or "")
    assert "bad.toml" in str(caught.value)


def test_neither_name_nor_file() -> None:
    with raises(FileNotFoundError, kind="missing-file", name="slidding"):
        InferenceProtocol.load("slidding")
