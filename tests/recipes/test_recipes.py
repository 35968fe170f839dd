"""The recipes of the package: each says what to expect, agrees with the zoo, and has its row in docs/recipes.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ddsm_zoo import is_model, list_models
from ddsm_zoo.training.recipe import Recipe, list_recipes
from ddsm_zoo.zoo import registry
from tests.support.shell_blocks import CHECK

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "ddsm_zoo" / "recipes"
TABLE = ROOT / "docs" / "recipes.md"
ROW = re.compile(r"\| (?P<row>[^|]+) \| `(?P<model>\w+)`[^|]* \| `(?P<recipe>\w+)` \| (?P<score>[^|]+) \|")
ROWS = [match.groupdict() for match in ROW.finditer(TABLE.read_text(encoding="utf-8"))]
ABOUT = ("purpose", "hardware", "duration", "score")


def test_every_file_is_found_by_its_name() -> None:
    assert list_recipes() == sorted(path.name.removesuffix(".toml") for path in RECIPES.iterdir())


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_says_what_to_expect(name: str) -> None:
    recipe = Recipe.load(name)
    assert is_model(recipe.model)
    assert all(getattr(recipe.about, field) for field in ABOUT)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_begins_with_a_command_that_can_be_typed(name: str) -> None:
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").replace(" \\\n#       ", " ")
    commands = [shlex.split(line[2:]) for line in text.splitlines() if re.match(r"#   \w.* train --recipe ", line)]
    assert any(words[words.index("--recipe") + 1] == name for words in commands)
    for program, *words in commands:
        CHECK[program](words)
        assert words[words.index("--recipe") + 1] in list_recipes()


def test_a_recipe_expects_the_score_that_is_published_for_its_model() -> None:
    expected, published = {}, {}
    for name in list_models():
        weights = registry.find(name).weights
        if weights is not None and weights.recipe is not None and weights.published:
            recipe = Recipe.load(weights.recipe)
            if name.startswith(recipe.model.removesuffix("_cityscapes")):
                expected[weights.recipe] = recipe.about.score.split()[0]
                published[weights.recipe] = f"{next(iter(weights.published.values())):g}"
    assert expected == published
    assert len(expected) == 4


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_has_its_row_on_the_page(name: str) -> None:
    about = Recipe.load(name).about
    row = " | ".join([f"`{name}`", *(getattr(about, field) for field in ABOUT)])
    assert f"| {row} |" in TABLE.read_text(encoding="utf-8").splitlines(), "run `make table`"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['row']}, {row['model']}")
def test_a_row_names_a_model_and_a_recipe(row: dict[str, str]) -> None:
    assert is_model(row["model"])
    assert row["recipe"] in list_recipes()


def test_every_published_figure_has_its_row() -> None:
    published = 0
    for name in list_models():
        weights = registry.find(name).weights
        if weights is None or weights.recipe is None:
            continue
        assert weights.recipe in list_recipes(), name
        rows = [
            row
            for row in ROWS
            if name.startswith(row["model"].removesuffix("_cityscapes")) and row["recipe"] == weights.recipe
        ]
        assert rows, name
        for score in weights.published.values():
            published += 1
            assert any(row["score"].startswith(f"{score:g}") for row in rows), (name, score)
    assert published == 13
