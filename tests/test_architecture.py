"""Promises of the folders: few modules at the top, one name a class, imports that the linter sees, plain docstrings."""

from __future__ import annotations

import ast
import collections
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ddsm_zoo"
# Lazy public names, and modules that a user names on the command line
DYNAMIC = {"__init__.py", "cli/app.py"}


def trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_few_modules_stand_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_a_class_name_is_defined_once() -> None:
    """Catching one of two exceptions of a name would miss the other."""
    names = collections.Counter(
        node.name for tree in trees().values() for node in tree.body if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


def test_no_import_hides_from_the_linter() -> None:
    hidden = [
        path
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
    ]
    assert set(hidden) <= DYNAMIC


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    """A clause without one makes the reader go back."""
    nodes = [(path, node) for path, tree in trees().items() for node in ast.walk(tree)]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [(path, ast.get_docstring(node) or "") for path, node in nodes if isinstance(node, documented)]
    riddles = ("What", "Which", "How", "Whether", "From", "Of")
    assert [(path, text[:60]) for path, text in texts if text.partition(" ")[0] in riddles] == []
