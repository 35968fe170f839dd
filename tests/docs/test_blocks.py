"""Every block of code in the pages that users read does what it says, from top to bottom of its page."""

from __future__ import annotations

import ast
import io
import json
import sys
import tokenize
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ddsm_zoo.data.datasets import open_layout
from ddsm_zoo.inference.protocol import InferenceProtocol
from ddsm_zoo.training.recipe import Recipe, find_recipe, list_recipes, tomllib
from ddsm_zoo.utils.plain_data import from_dict
from tests.support import stand_ins
from tests.support.pages import PAGES, Block, blocks
from tests.support.shell_blocks import check_shell, run_shell
from tests.support.stand_ins import SETTINGS, Setting


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_a_page_does_what_it_says(page: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS.get(page, Setting())
    stand_ins.write_runs(here, setting.runs)
    unused = set(setting.swaps)
    reader = ModuleType("reader")  # code of a page may ask for the module that it is in
    monkeypatch.setitem(sys.modules, "reader", reader)
    for block in blocks(page):
        code = block.code
        for old, new in setting.swaps.items():
            unused -= {old} if old in code else set()
            code = code.replace(old, new)
        if block.not_run is not None:
            check(block, code)
        elif block.language == "bash":
            assert run_shell(code, monkeypatch), block
        elif block.language == "python":
            run_python(block, code, vars(reader))
        else:
            read(block, code)
    assert not unused, "the page no longer has these"


def check(block: Block, code: str) -> None:
    """What can be said of a block that is not run."""
    if block.language == "python":
        compile(code, str(block), "exec")
    else:
        assert block.language == "bash", block
        assert check_shell(code), block


def run_python(block: Block, code: str, names: dict[str, Any]) -> None:
    """Run it, or write the file that its first line names. A value followed by a literal as a comment equals that."""
    if code.startswith("# ") and code.splitlines()[0].endswith(".py"):
        Path(code.splitlines()[0].removeprefix("# ")).write_text(code, encoding="utf-8")
        return
    comments = {
        token.start[0] + block.line: token.string.removeprefix("# ")
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.increment_lineno(ast.parse(code), block.line).body:
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), PAGES[block.page], "eval"), names)
            promised = comments.get(statement.lineno, "")
            assert not is_literal(promised) or value == ast.literal_eval(promised), f"{block}: {value}"
        else:
            exec(compile(ast.Module([statement], []), PAGES[block.page], "exec"), names)


def is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


def read(block: Block, code: str) -> None:
    """Load what is data; "text" is for readers alone."""
    if block.language == "json":
        Path("labels.json").write_text(code, encoding="utf-8")
        assert open_layout("folder:.").labels.names == tuple(json.loads(code)["names"])
    elif block.language == "toml":
        fields = tomllib.loads(code)
        assert from_dict(Recipe if "model" in fields else InferenceProtocol, fields)
    else:
        assert block.language in ("text", "bibtex"), f"{block} is {block.language!r}, which is neither run nor read"


def test_what_one_writes_oneself_is_short() -> None:
    """docs/extending.md promises that a backbone, a decoder or a data set is no more than a screen."""
    lengths = [len(block.code.splitlines()) for block in blocks("docs/extending.md")]
    assert 20 < max(lengths) < 40


def test_no_block_is_forgotten() -> None:
    counted = {
        page: sum(line.lstrip().startswith("```") for line in path.read_text(encoding="utf-8").splitlines())
        for page, path in PAGES.items()
    }
    assert {page: 2 * len(blocks(page)) for page in PAGES} == counted
    assert sum(counted.values()) > 100
    assert set(SETTINGS) <= set(PAGES)


@pytest.mark.parametrize("recipe", list_recipes())
def test_a_recipe_loads_and_is_shortened(recipe: str, tmp_path: Path) -> None:
    """What stands in for it differs in length alone."""
    short = tmp_path / "short.toml"
    short.write_text(stand_ins.shortened(find_recipe(recipe).read_text(encoding="utf-8")), encoding="utf-8")
    changed = {name: tomllib.loads(f"{name} = {value}")[name] for name, value in stand_ins.SHORT.items()}
    assert Recipe.load(short) == Recipe.load(recipe, changed)
