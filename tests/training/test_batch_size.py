"""How many images fit into memory: counted by hand for small networks, and what else bounds a batch."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ddsm_zoo.training.batch_size import find_batch_size, free_memory, kept_bytes
from ddsm_zoo.training.loop import fit
from ddsm_zoo.training.recipe import Recipe
from tests.support.errors import raises
from tests.support.tiny_training import Blobs
from tests.support.together import run_together

ROOT = Path(__file__).resolve().parents[2]
SIDE = 20
PIXELS = SIDE * SIDE
PLENTY = 10**12


class Net(nn.Module):
    """A convolution whose output the next operation changes in place: the input and one map are kept, no more."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.num_classes = classes
        self.first = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.first(x)).relu_())
        return logits


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"model": "net", "batch_size": 0, "crop_size": (SIDE, SIDE), "lr": 0.8, **fields})


def test_what_a_step_keeps_is_counted_once_and_without_the_weights() -> None:
    floats = {
        "image": 3,
        "norm's input": 8,
        "norm's output, which the activation shares": 8,
        "logarithms of the softmax": 3,
    }
    known = 4 * PIXELS * sum(floats.values()) + 8 * PIXELS  # and the targets
    assert known <= kept_bytes(Net(), recipe(), 3) <= known + 4 * PIXELS * 3


def test_counting_leaves_the_model_and_the_random_numbers_as_they_are() -> None:
    model = Net().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    kept_bytes(model, recipe(), 3)
    assert torch.equal(torch.rand(2), expected)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@given(free=st.integers(0, 2_000_000), images=st.integers(1, 200))
def test_a_batch_is_a_power_of_two_that_fits_and_leaves_four_steps(free: int, images: int) -> None:
    model = Net()
    each, weights = 1.5 * kept_bytes(model, recipe(), 3), 5 * sum(p.nbytes for p in model.parameters())
    if weights + each > 0.8 * free:
        with raises(ValueError, kind="out-of-memory", name="crop_size", got=(SIDE, SIDE)):
            find_batch_size(recipe(), model, 3, images, free)
        return
    size = find_batch_size(recipe(), model, 3, images, free).batch_size
    assert size in (1, 2, 4, 8)
    assert weights + size * each <= 0.8 * free
    assert size == 1 or images // size >= 4
    larger = 2 * size
    assert larger > 8 or weights + larger * each > 0.8 * free or images // larger < 4


@pytest.mark.parametrize(
    ("fields", "images", "expected"),
    [
        ({}, 1000, (8, 0.8, 0.2)),
        ({}, 20, (4, 0.4, 0.1)),
        ({"optimizer": "adamw"}, 9, (2, 0.4, 0.1)),
        ({"gradient_accumulation": 2}, 20, (4, 0.8, 0.2)),
        ({"epochs": 15}, 64, (8, 0.8, 0.2)),
        ({"epochs": 15}, 39, (4, 0.4, 0.1)),  # 8 images a step would make 75 steps, 4 make 150
        ({"epochs": 2}, 24, (4, 0.4, 0.1)),  # few steps, but no batch below 4
        ({"epochs": 20, "gradient_accumulation": 2}, 48, (4, 0.8, 0.2)),
    ],
)
def test_rates_follow_the_images_of_a_step(
    fields: dict[str, Any], images: int, expected: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        resolved = find_batch_size(recipe(backbone_lr=0.2, **fields), Net(), 3, images, PLENTY)
    assert (resolved.batch_size, resolved.lr, resolved.backbone_lr) == pytest.approx(expected)
    assert f"batch_size {expected[0]} (" in caplog.text


def test_half_precision_and_an_auxiliary_head_are_counted() -> None:
    class WithHead(Net):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor, auxiliary: bool = False) -> dict[str, Tensor]:
            features = self.norm(self.first(x)).relu_()
            return {"out": self.last(features), "aux": self.auxiliary(features)}

    plain = kept_bytes(Net(), recipe(), 3)
    assert kept_bytes(Net(), recipe(precision="bf16"), 3) < plain < kept_bytes(WithHead(), recipe(), 3)


def test_a_run_needs_a_number(tmp_path: Path) -> None:
    with raises(ValueError, kind="argument", name="batch_size", got=0):
        fit(Net(), recipe(), Blobs(4), Blobs(1), tmp_path)
    assert not list(tmp_path.iterdir())


def room_for(images: float) -> int:
    """Free bytes in which so many images of `recipe` fit."""
    weights = sum(parameter.nbytes for parameter in Net().parameters())
    return int((5 * weights + images * 1.5 * kept_bytes(Net(), recipe(), 3)) / 0.8)


TOGETHER = """
import json, os, sys
from ddsm_zoo.training.batch_size import find_batch_size
from tests.training.test_batch_size import Net, recipe

said = []
for images, free in json.loads(sys.argv[1]):
    try:
        resolved = find_batch_size(recipe(), Net(), 3, images, free[int(os.environ["RANK"])])
        said.append([resolved.batch_size, resolved.lr])
    except ValueError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def test_processes_come_to_the_same_batch_whatever_each_has_free() -> None:
    cases = [
        (1000, (PLENTY, PLENTY)),  # eight images each
        (1000, (room_for(6.5), room_for(3.5))),  # two each, as in the second
        (1000, (room_for(4.5), PLENTY)),  # four each, as in the first
        (20, (PLENTY, PLENTY)),  # two each: five steps
        (1000, (PLENTY, room_for(0.5))),
    ]
    first, second = (json.loads(output) for output in run_together(["-c", TOGETHER, json.dumps(cases)], ROOT))
    assert first == second
    assert first[:4] == [[16, 1.6], [4, 0.4], [8, 0.8], [4, 0.4]]
    assert "takes about" in first[4]


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert alone / 2000 < free_memory(torch.device("cpu")) < alone / 500


def test_the_machine_has_memory() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
