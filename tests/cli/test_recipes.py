"""``ddsm-zoo recipes``, and ``train --recipe NAME`` in a folder that holds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddsm_zoo.training.recipe import tomllib
from tests.support.command_line import run_command
from tests.support.tiny_training import log_of

FILES = {path.stem: path for path in Path(__file__).parents[2].joinpath("ddsm_zoo", "recipes").glob("*.toml")}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_listing_says_what_the_files_say() -> None:
    files = {name: tomllib.loads(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
    text = run_command("recipes").stdout
    listed = json.loads(run_command("recipes", "--json", "-").stdout)
    assert [row["name"] for row in listed] == sorted(files)
    for row in listed:
        content = files[row["name"]]
        assert row == {"name": row["name"], "model": content["model"], **content["about"]}
        assert all(value in text for value in row.values())
    run_command("recipes", "--json", "recipes.json")
    assert json.loads(Path("recipes.json").read_text()) == listed


def test_a_copy_is_written_once() -> None:
    assert "--recipe finetune.toml" in run_command("recipes", "--copy", "finetune").stdout
    Path("finetune.toml").write_text("mine")
    assert "cannot write finetune.toml: it exists" in run_command("recipes", "--copy", "finetune", fails=1).stderr
    assert Path("finetune.toml").read_text() == "mine"
    run_command("recipes", "--copy", "finetune", "--to", "sub/mine.toml")
    assert 'model = "uper_ddsm_lite0_camvid"' in Path("sub/mine.toml").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--copy", "finetun"], "did you mean finetune?"),
        (["--copy", "finetune.toml"], "the package has the recipe finetune"),
        (["--copy", "finetune", "--to", "mine"], "mine, expected one that ends in .toml"),
        (["--copy", "finetune", "--to", "/dev/null/mine.toml"], "cannot write /dev/null/mine.toml"),
        (["--to", "mine.toml"], "expected --copy NAME with it"),
        (["--copy", "finetune", "--json", "-"], "--json lists the recipes"),
        (["--json", "."], "cannot write ."),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(options: list[str], message: str, tmp_path: Path) -> None:
    assert message in run_command("recipes", *options, fails=1).stderr
    assert not list(tmp_path.iterdir())


def test_training_by_name_and_by_an_edited_copy() -> None:
    options = ("--data", "scenes:2", "--no-pretrained", "--epochs", "1", "--set", "crop_size=[32, 32]")
    run_command("train", "--recipe", "tiny_scenes", "--out", "named", *options)
    run_command("recipes", "--copy", "tiny_scenes", "--to", "mine.toml")
    Path("mine.toml").write_text(Path("mine.toml").read_text().replace("lr = 5e-3", "lr = 1e-3"))
    run_command("train", "--recipe", "mine.toml", "--out", "edited", *options)
    for out, rate, recipe in (("named", 5e-3, "tiny_scenes"), ("edited", 1e-3, "mine.toml")):
        assert log_of(Path(out))[0]["recipe"]["lr"] == rate
        config = json.loads(Path(out, "best", "config.json").read_text())
        assert f'"{recipe}"' in json.dumps(config)
        assert f"Recipe: `{recipe}`" in Path(out, "best", "README.md").read_text()
    assert "did you mean tiny_scenes" in run_command("train", "-r", "tiny_scene", "-o", "x", *options, fails=1).stderr


def test_listing_loads_no_torch() -> None:
    call = "cli.app(['recipes'], standalone_mode=False)"
    code = f"import sys; from ddsm_zoo import cli; {call}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
