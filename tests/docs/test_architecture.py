"""docs/architecture.md names folders, files and functions that exist, and the imports that the linter enforces."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.support.pages import PAGES, ROOT, blocks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = "docs/architecture.md"
PACKAGE = ROOT / "ddsm_zoo"
TEXT = PAGES[PAGE].read_text(encoding="utf-8")
STEPS = re.findall(r"^\d+\. (.+(?:\n   .+)*)", TEXT, flags=re.MULTILINE)
PATH = re.compile(r"[\w/]+(?:/|\.py|\.toml)")
NAME = re.compile(r"[A-Za-z_]\w*")


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def defined_names(path: Path) -> set[str]:
    """Functions, methods and classes of a module."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_path_exists() -> None:
    paths = [span for span in code_spans(TEXT) if PATH.fullmatch(span)]
    assert len(paths) > 60
    missing = [path for path in paths if not (PACKAGE / path).exists() and not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.split("`")[1])
def test_the_names_of_a_step_are_defined_in_its_files(step: str) -> None:
    spans = code_spans(step)
    files = [PACKAGE / span for span in spans if span.endswith(".py")]
    names = {span for span in spans if NAME.fullmatch(span)}
    assert files
    assert names <= set.union(*map(defined_names, files))


def test_there_are_three_journeys_of_a_screen_each() -> None:
    journeys = [part for part in TEXT.split("\n## ") if re.search(r"^1\. ", part, flags=re.MULTILINE)]
    assert [part.splitlines()[0] for part in journeys] == [
        "A name becomes a model",
        "An image becomes a mask",
        "A recipe becomes weights",
    ]
    assert all(len(part.splitlines()) < 34 for part in journeys)


def test_the_table_has_every_folder_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)/` \|", TEXT, flags=re.MULTILINE)
    folders = [path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__")]
    assert sorted(listed) == sorted(folders)


def test_the_line_of_imports_is_the_contract() -> None:
    (line,) = [block.code.strip() for block in blocks(PAGE)]
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [each for each in config["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    assert line == " > ".join(contract["layers"])
