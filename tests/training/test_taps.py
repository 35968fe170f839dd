"""Samplers in training: their own rate, taps that stay on the map, and a log that tells when they do not."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddsm_zoo import create_model, resolve_data_config
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.transforms import TrainTransform
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.layers import ChannelAffinity, DynamicSampler
from ddsm_zoo.training.checkpoint import check_continues
from ddsm_zoo.training.loop import Hooks, fit
from ddsm_zoo.training.optimizer import parameter_groups
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.files import CheckpointError
from tests.support.errors import raises
from tests.support.tiny_training import Blobs, Crash, recipe


def rates(model: nn.Module, trained: Recipe) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["lr"] / trained.lr
        for group in parameter_groups(model, trained)
        for parameter in group["params"]
    }


@pytest.mark.parametrize(
    ("name", "predictors"),
    [
        ("uper_ddsm_s_tiny", {f"decoder.fusions.{i}.spatial.sampler.predict" for i in range(3)}),
        ("uper_ddsm_c_tiny", {f"decoder.fusions.{i}.channel.sampler.predict" for i in range(3)}),
        ("uper_dcn_tiny", {f"decoder.fusions.{i}.offset" for i in range(3)}),
        ("deeplabv3plus_ddsm_s_tiny", {"decoder.fusion.spatial.sampler.predict"}),
        ("uper_tiny", set()),
    ],
)
def test_what_predicts_offsets_learns_at_a_tenth_of_the_rate(name: str, predictors: set[str]) -> None:
    model = create_model(name, num_classes=3)
    slow = {f"{predictor}.{kind}" for predictor in predictors for kind in ("weight", "bias")}
    for parameter, rate in rates(model, recipe()).items():
        assert rate == pytest.approx(0.1 if parameter in slow else 1.0), parameter
    assert set(rates(model, recipe(sampler_lr_mult=1.0)).values()) == {1.0}


@pytest.mark.parametrize(("bound", "least"), [(ChannelAffinity.offset_bound, 0.7), (None, 0.8)])
def test_taps_stay_on_the_map_through_200_steps(
    bound: float | None, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rate and the optimizer of the evidence.

    The bound alone would keep them there, so the samplers' rate and scale must do it without, too. With none of the
    three the channel half has 66 % of its taps on the grid by then, with the rate alone 93 %, with rate and scale 92 %.
    """
    monkeypatch.setattr(ChannelAffinity, "offset_bound", bound)
    real = Recipe.load("evidence_camvid")
    short = dataclasses.replace(real, model="uper_ddsm_lite0", epochs=1, batch_size=2, crop_size=(96, 128))
    model = create_model(short.model, labels=CAMVID, pretrained_backbone=True)
    transform = TrainTransform(resolve_data_config(model), short.crop_size, 255, (0.3, 0.5), short.flip)
    train_set = open_dataset("scenes:8", "train", transform)
    again = Hooks(order=lambda images, _seed, _epoch: list(range(images)) * (200 * short.batch_size // images))
    fit(model, short, train_set, train_set, tmp_path, hooks=again)
    (epoch,) = log_of(tmp_path)
    assert len(epoch["taps_on_map"]) == 6
    assert min(epoch["taps_on_map"].values()) >= least, epoch["taps_on_map"]
    assert max(epoch["blind"].values()) <= 0.05


class Sampled(nn.Module):
    """A classifier of what a sampler reads, whose offsets begin ``away`` from the plain grid."""

    num_classes = 3

    def __init__(self, away: float) -> None:
        super().__init__()
        self.sampler = DynamicSampler(3, 9)
        nn.init.constant_(self.sampler.predict.bias, away)
        self.classifier = nn.Conv2d(27, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        offset, modulation = self.sampler(x)
        logits: Tensor = self.classifier(torch.cat((offset, modulation), 1))
        return logits


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


def test_every_epoch_logs_taps_and_a_loss_of_them_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(Sampled(away=50.0), recipe(lr=1e-3), Blobs(8), Blobs(2), tmp_path)
    assert [epoch["taps_on_map"] for epoch in log_of(tmp_path)] == [{"": 0.0}] * 3
    assert [epoch["blind"] for epoch in log_of(tmp_path)] == [{"": 1.0}] * 3
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "sampler_lr_mult" in warning
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert sum("taps on the map 0%" in line for line in lines) == 3


def test_taps_on_the_map_are_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(Sampled(away=0.0), recipe(lr=1e-3), Blobs(8), Blobs(2), tmp_path)
    assert min(epoch["taps_on_map"][""] for epoch in log_of(tmp_path)) > 0.8
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_model_that_samples_nothing_logs_no_taps(tmp_path: Path) -> None:
    class Plain(nn.Conv2d):
        num_classes = 3

    fit(Plain(3, 3, 1), recipe(), Blobs(8), Blobs(2), tmp_path)
    assert not any("taps_on_map" in epoch for epoch in log_of(tmp_path))


def test_a_run_killed_in_the_validation_logs_the_taps_of_its_last_step(tmp_path: Path) -> None:
    class Killed(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            raise Crash

    saved = recipe(lr=1e-3, save_every=1)
    torch.manual_seed(0)
    model = Sampled(away=0.0)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Crash):
        fit(model, saved, Blobs(8), Killed(2), tmp_path / "killed")
    for out, resume in (("killed", True), ("whole", False)):
        model.load_state_dict(start)
        fit(model, saved, Blobs(8), Blobs(2), tmp_path / out, resume=resume)
    assert [epoch["taps_on_map"] for epoch in log_of(tmp_path / "killed")] == [
        epoch["taps_on_map"] for epoch in log_of(tmp_path / "whole")
    ]


def test_a_run_begun_before_samplers_had_a_rate_of_their_own_does_not_go_on(tmp_path: Path) -> None:
    old = recipe().to_plain()
    del old["sampler_lr_mult"]
    with raises(CheckpointError, kind="other-recipe", got=["sampler_lr_mult"]):
        check_continues(tmp_path, {"recipe": old, "images": 8, "position": {"epoch": 1, "step": 0}}, recipe(), 8, {})
    check_continues(
        tmp_path, {"recipe": old, "images": 8, "position": {"epoch": 1, "step": 0}}, recipe(sampler_lr_mult=1.0), 8, {}
    )
