"""``ddsm-zoo train``: options that change the recipe, and what is said at the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ddsm_zoo
from tests.support.command_line import run_command
from tests.support.data_sets import write, write_labels
from tests.support.tiny_training import epochs_of, log_of
from tests.support.together import run_together

RECIPE = 'model = "uper_tiny"\nepochs = 9\nbatch_size = 2\ncrop_size = [32, 32]\nworkers = 0\n'
TRAIN = ("train", "-r", "recipe.toml", "-d", "folder:data", "-o", "run", "--no-pretrained")


# Keeps what goes to stderr in a file for each process, and runs the command that follows.
COMMAND = """
import os, sys
from ddsm_zoo.cli import main
sys.stderr = open(f"stderr{os.environ['RANK']}", "w")
main()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    for index in range(5):
        write(Path(f"data/images/train/{index}.png"), np.full((32, 40, 3), 50 * index, np.uint8))
        write(Path(f"data/masks/train/{index}.png"), np.full((32, 40), index % 2, np.uint8))
    write_labels(Path("data"))


def test_any_field_can_be_set() -> None:
    changes = ("--set", "sampling=balanced", "--set", "crop_size=[16, 24]", "--set", "epochs=5")
    run_command(*TRAIN, *changes, "--epochs", "1")
    used = log_of(Path("run"))[0]["recipe"]
    assert (used["sampling"], used["crop_size"], used["epochs"]) == ("balanced", [16, 24], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sampling", "got the change 'sampling', expected FIELD=VALUE"),
        ("samplin=balanced", "recipe.toml has unknown field 'samplin'"),
        ("patience=-1", "patience is -1, expected 0 or more"),
        ("ohem=much", "ohem is 'much' (str), expected float"),
    ],
)
def test_a_change_that_cannot_be_is_one_line_and_nothing_is_written(change: str, message: str) -> None:
    assert message in run_command(*TRAIN, "--set", change, fails=1).stderr
    assert not Path("run").exists()


def test_too_little_memory_is_one_line() -> None:
    error = run_command(*TRAIN, "--set", f"crop_size=[{2**24}, {2**24}]", fails=True).stderr
    assert "error: not enough memory to train; choose a smaller batch_size" in " ".join(error.split())
    assert "Traceback" not in error


def test_the_end_says_why_a_run_ended_early_and_where_the_model_is() -> None:
    done = run_command(*TRAIN, "--set", "patience=1", "--tensorboard")
    best = max(epochs_of(Path("run")), key=lambda line: line["miou"])["epoch"]
    assert f"ended after {best + 1} epochs: no higher mIoU since epoch {best}" in done.stdout
    assert f"in epoch {best}: local-dir:run/best" in done.stdout
    assert "1 of the 5 images in train are held out" in " ".join(done.stderr.split())
    assert list(Path("run/tensorboard").iterdir())
    assert json.loads(Path("run/best/config.json").read_text())["label_names"] == ["road", "car", "sky"]


def test_taps_on_the_map_are_printed_and_stay_with_the_model() -> None:
    changes = ("--model", "uper_ddsm_tiny", "--epochs", "1", "--set", "crop_size=[64, 96]")
    done = run_command("train", "-r", "recipe.toml", "-d", "scenes:2", "-o", "run", "--no-pretrained", *changes)
    names = {f"decoder.fusions.{level}.{half}" for level in range(3) for half in ("spatial", "channel")}
    (epoch,) = epochs_of(Path("run"))
    assert set(epoch["taps_on_map"]) == names
    fewest = min(epoch["taps_on_map"].values())
    assert f"(fewest {fewest:.0%}, decoder.fusions." in " ".join(done.stderr.split())
    kept = ddsm_zoo.create_model("local-dir:run/best", pretrained=True).provenance.weights.taps_on_map
    assert set(kept) == names
    assert min(kept.values()) > 0.5


def test_of_two_processes_the_first_alone_reports(tmp_path: Path) -> None:
    changes = ("--set", "batch_size=0", "--epochs", "1", "--json", "figures.json")
    first, second = run_together(["-c", COMMAND, *TRAIN, *changes], tmp_path)
    assert first.count("local-dir:run/best") == 1
    assert second == ""
    said, unsaid = (Path(f"stderr{rank}").read_text() for rank in range(2))
    assert said.count("batch_size 2 (") == 1  # found, one image each
    assert unsaid == ""
    assert json.loads(Path("figures.json").read_text())["epochs"] == 1
    started = log_of(Path("run"))[0]
    assert (started["processes"], started["recipe"]["batch_size"]) == (2, 2)
