"""Matrix files: what they hold, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evidence.arms import check_arm
from benchmarks.evidence.matrix import Arm, Cell, Matrix
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.data_sets import expect_one_line
from tests.support.matrices import QUICK, small, write_matrix


@pytest.mark.parametrize("path", sorted(QUICK.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_every_matrix_of_the_project_loads_and_its_arms_can_be_built(path: Path) -> None:
    matrix = Matrix.load(path)
    assert matrix.name == path.stem
    for name, arm in matrix.arms.items():
        check_arm(name, arm)


def test_pairs_of_the_question_come_first_then_arm_by_arm(tmp_path: Path) -> None:
    cells = [str(cell) for cell in small(tmp_path).cells()]
    assert cells[:4] == ["plain north seed 0", "ddsm north seed 0", "plain south seed 0", "ddsm south seed 0"]
    assert cells[8:12] == ["s north seed 0", "s south seed 0", "s north seed 1", "s south seed 1"]
    assert len(set(cells)) == 20


def test_a_recipe_scores_its_last_step_alone(tmp_path: Path) -> None:
    changes = {"[folds]": "[changes]\nepochs = 7\nvalidate_every = 2\npatience = 3\n[folds]"}
    matrix = Matrix.load(write_matrix(tmp_path / "small.toml", changes))
    recipe = matrix.recipe_of(Cell(arm="s", fold="north", seed=1))
    assert (recipe.model, recipe.seed, recipe.epochs) == ("uper_ddsm_s_tiny", 1, 7)
    assert (recipe.validate_every, recipe.patience) == (7, 0)


def test_an_arm_can_be_a_variant_of_the_recipe(tmp_path: Path) -> None:
    changes = {
        "[folds]": "[changes]\ndice = 0.25\nflip = 0.0\n[folds]",
        "[arms.dcn]": "[arms.dcn]\nchanges = { dice = 0.75 }",
    }
    matrix = Matrix.load(write_matrix(tmp_path / "small.toml", changes))
    plain, varied = (matrix.recipe_of(Cell(arm=arm, fold="north", seed=0)) for arm in ("plain", "dcn"))
    assert [(recipe.dice, recipe.flip) for recipe in (plain, varied)] == [(0.25, 0.0), (0.75, 0.0)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds = [0, 1]", "", "either seeds or pairs"),
        ("seeds = [0, 1]", 'pairs = [["west", 0]]', "'west', expected some of north, south"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "must differ"),
        ("[arms.plain]", "[arms.base]", "baseline is 'plain', expected one of the arms base"),
        ("[arms.dcn]", '[arms."a/b"]', "'a/b'"),
        ("[arms.dcn]", "[folds.dcn]", "unknown field 'dcn'"),
        ('by = "sequence"', 'by = "block"', "count is 0, expected at least 2 blocks"),
        ('names = ["north", "south"]', "", "names is empty"),
        ('"tiny_scenes"', '"none.toml"', "no recipe at"),
        ("[folds]", "[changes]\nepoch = 3\n[folds]", "unknown field 'epoch'"),
        ("[arms.dcn]", "[arms.dcn]\nchanges = { epoch = 3 }", "unknown field 'epoch'"),
        ("[arms.dcn]", "[arms.dcn]\nchanges = { ohem = 2.0 }", "ohem"),
        ("[folds]", "[changes]\nseed = 3\n[folds]", "seed, which has no effect there"),
        ("[arms.dcn]", '[arms.dcn]\nchanges = { model = "uper_tiny" }', "changes of arm dcn has model"),
        ("[arms.dcn]", "[arms.dcn]\nchanges = { overrides = { pool = 8 } }", "changes of arm dcn has overrides"),
    ],
)
def test_what_is_wrong_with_a_matrix_is_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write_matrix(tmp_path / "small.toml", {old: new})
    kind = FileNotFoundError if "none.toml" in new else ConfigError
    expect_one_line(lambda: Matrix.load(path), words, kind=kind)


def test_a_missing_file_and_one_that_is_no_toml(tmp_path: Path) -> None:
    expect_one_line(lambda: Matrix.load(tmp_path / "none.toml"), "no matrix at", kind=FileNotFoundError)
    (tmp_path / "bad.toml").write_text("name = ")
    expect_one_line(lambda: Matrix.load(tmp_path / "bad.toml"), "not valid TOML", kind=ConfigError)


@pytest.mark.parametrize("arm", [Arm(model="uper_nothing"), Arm(model="uper_tiny", overrides={"fusions": "dcn"})])
def test_an_arm_that_cannot_be_built_is_named(arm: Arm) -> None:
    expect_one_line(lambda: check_arm("odd", arm), "arm odd cannot be built", kind=ConfigError)
