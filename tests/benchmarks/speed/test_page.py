"""The page of measured tables: written from what was kept, honest about what was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed import page
from tests.support.small_networks import use_small_networks

SKELETON = "".join(
    f"## {name}\n\n<!-- measured: {name} -->\nstale\n<!-- end -->\n\nkept text\n\n" for name in page.TABLES
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "performance.md"
    path.write_text(SKELETON)
    return path


def test_one_command_measures_and_writes(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_networks(monkeypatch)
    results = tmp_path / "speed"
    options = ["--small", "--results", str(results), "--page", str(target)]
    page.main(options)
    text = target.read_text()
    assert sorted(path.stem for path in results.iterdir()) == sorted(page.PARTS)
    assert "stale" not in text
    assert text.count("kept text") == len(page.TABLES)
    assert "Not measured yet" not in text
    op = json.loads((results / "op.json").read_text())
    median = next(row["median"] for row in op["rows"] if row["backend"] == "tap loop" and row["load"] == "quiet")
    assert f" {median:.3g} |" in text
    assert "| 8 x 8 | 25 | forward, backward | one core busy, nice 0 |" in text
    assert text.count(f"Machine: {op['environment']['cpu']}") == len(page.TABLES) - 1
    assert "slow by design" in text
    assert "| `uper_ddsm_tiny` | one core busy, nice 19 |" in text
    assert "| uper_ddsm_tiny, exponent of time over pixels |" in text
    page.main(["--render", "--results", str(results), "--page", str(target)])
    assert target.read_text() == text


def test_parts_that_were_not_measured_are_named(target: Path, tmp_path: Path) -> None:
    page.main(["--render", "--results", str(tmp_path / "none"), "--page", str(target)])
    for part in page.PARTS:
        assert (
            f"Not measured yet: `{part}`. Run `python -m benchmarks.speed.page --suite {part}`." in target.read_text()
        )


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "other.md"
    target.write_text("no marks")
    with pytest.raises(ValueError, match=r"other\.md has the marks .*, expected one of each: bars, op"):
        page.write(tmp_path, target)
    assert target.read_text() == "no marks"


def test_the_page_of_the_documentation_has_the_marks(tmp_path: Path) -> None:
    copy = tmp_path / "performance.md"
    copy.write_text(page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    page.write(page.RESULTS, copy)
    assert copy.read_text(encoding="utf-8") == page.PAGE.read_text(encoding="utf-8")
