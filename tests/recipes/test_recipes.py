"""The table of recipes against the zoo: each model with a published figure has its row, and each row can be typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddsm_zoo import is_model, list_models
from ddsm_zoo.zoo import registry

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "ddsm_zoo" / "recipes"
TABLE = ROOT / "docs" / "recipes.md"
ROW = re.compile(r"\| (?P<row>[^|]+) \| `(?P<model>\w+)`[^|]* \| `(?P<recipe>\w+\.toml)` \| (?P<score>[^|]+) \|")
ROWS = [match.groupdict() for match in ROW.finditer(TABLE.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['row']}, {row['model']}")
def test_a_row_names_a_model_and_a_recipe(row: dict[str, str]) -> None:
    assert is_model(row["model"])
    assert (RECIPES / row["recipe"]).is_file()


def test_every_published_figure_has_its_row() -> None:
    published = 0
    for name in list_models():
        weights = registry.find(name).weights
        if weights is None or weights.recipe is None:
            continue
        recipe = Path(weights.recipe).name
        rows = [
            row for row in ROWS if name.startswith(row["model"].removesuffix("_cityscapes")) and row["recipe"] == recipe
        ]
        assert rows, name
        for score in weights.published.values():
            published += 1
            assert any(row["score"].startswith(f"{score:g}") for row in rows), (name, score)
    assert published == 13


def test_every_recipe_is_listed() -> None:
    text = TABLE.read_text(encoding="utf-8")
    assert [path.name for path in RECIPES.glob("*.toml") if f"`{path.name}`" not in text] == []
