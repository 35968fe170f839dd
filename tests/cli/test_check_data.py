"""``ddsm-zoo check-data``: the table, the exit status and the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.command_line import run_command
from tests.support.data_sets import write
from tests.support.label_doctor import IDS, build, four

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call ``check-data`` beside a sound data set ``data``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    build(tmp_path / "data", four())
    return partial(run_command, "check-data")


def test_sound_data(run: Run) -> None:
    output = run("folder:data").stdout
    rows = [line.replace("│", " ").split() for line in output.splitlines()]
    share = f"{100 / 3:.2f}"
    assert ["class", "train", "%", "of", "3", "images", "val", "%", "of", "1", "images"] in [
        line.replace("┃", " ").split() for line in output.splitlines()
    ]
    assert all([name, share, "3", share, "1"] in rows for name in ("road", "car", "sky"))
    assert output.splitlines()[-1] == "folder:data has no problems"


def test_warnings_alone_are_no_failure(run: Run) -> None:
    write(Path("data/masks/train/z.png"), IDS)
    output = run("folder:data").stdout
    assert "no image for 1 of 4 masks" in output
    assert output.splitlines()[-1] == "folder:data has 1 warning"


def test_errors_fail(run: Run) -> None:
    write(Path("data/masks/train/z.png"), IDS)
    write(Path("data/masks/train/b.png"), IDS + 40)
    result = run("folder:data", fails=1)
    lines = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
    assert [words[0] for words in lines if words and words[0] in ("error", "warning")] == ["error", "warning"]
    assert "ids that stand for no class in 1 of 3 masks" in result.stdout
    assert result.stderr == "error: folder:data has 1 error and 1 warning [unusable-data]\n"


def test_figures(run: Run) -> None:
    write(Path("data/masks/train/b.png"), IDS + 40)
    for target in ("-", "report.json"):
        result = run("folder:data", "--json", target, fails=1)
        figures = json.loads(result.stdout if target == "-" else Path(target).read_text())
        assert (figures["data"], figures["errors"], figures["warnings"]) == ("folder:data", 1, 0)
        (problem,) = figures["problems"]
        assert (problem["kind"], problem["severity"], problem["split"]) == ("unknown-id", "error", "train")
        assert (problem["count"], problem["total"]) == (1, 3)
        assert problem["examples"] == ["masks/train/b.png (40, 41, 42 on 100.0% of it, 192 pixels)"]
        pixels = 2 * int((IDS == 1).sum())
        assert figures["splits"]["train"]["classes"]["car"] == {"pixels": pixels, "share": 1 / 3, "images": 2}
        assert figures["splits"]["train"]["images"] == 3


def test_one_split(run: Run) -> None:
    write(Path("data/masks/train/b.png"), IDS + 40)
    assert "val %" in run("folder:data", "--split", "val").stdout
    assert "unknown" not in run("folder:data", "--split", "val", "--json", "-").stdout
    run("folder:data", "--split", "val", "--split", "train", fails=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder:nowhere"], "nowhere does not exist"),
        (["folder:data", "--split", "test"], "it has the splits train, val"),
        (["camvit:data"], "did you mean camvid:ROOT?"),
        (["scenes:3"], "nothing to check"),
        (["folder:data", "--json", "data"], "cannot write data"),
    ],
)
def test_what_cannot_be_checked(run: Run, arguments: list[str], message: str) -> None:
    assert message in run(*arguments, fails=1).stderr


def test_training_refuses_with_the_same_words(run: Run) -> None:
    write(Path("data/masks/train/b.png"), np.where(IDS == 1, 255, 0).astype(np.uint8))
    write(Path("data/masks/val/d.png"), IDS + 40)
    Path("recipe.toml").write_text('model = "uper_ddsm_tiny"\nepochs = 1\nbatch_size = 1\nworkers = 0\n')
    problems = json.loads(run("folder:data", "--json", "-", fails=1).stdout)["problems"]
    ((kind, text),) = ((entry["kind"], entry["text"]) for entry in problems if entry["severity"] == "error")
    train = ["train", "-r", "recipe.toml", "-d", "folder:data", "-o", "run", "--no-pretrained"]
    result = run_command(*train, fails=1)
    assert result.stderr == f"error: folder:data cannot be used: {text} [{kind}]\n"
    assert not Path("run").exists()
