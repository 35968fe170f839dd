"""The page says what the logs say, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.evidence.matrix import Cell, Matrix
from benchmarks.evidence.page import borne_out, load_results, section, write_page
from benchmarks.evidence.paired import paired
from tests.support.data_sets import expect_one_line
from tests.support.matrices import small, write_log

# (fold, seed): mIoU and F of plain, and what the module gains
SCORES = {
    ("north", 0): (60.0, 40.0, 1.0, 0.1),
    ("south", 0): (50.0, 30.0, 2.0, -0.1),
    ("north", 1): (62.0, 42.0, 3.0, 0.0),
}


def write_scores(matrix: Matrix, folder: Path) -> None:
    for (fold, seed), (miou, boundary_f, gain, boundary_gain) in SCORES.items():
        write_log(folder, matrix, Cell(arm="plain", fold=fold, seed=seed), miou, boundary_f)
        taps = {"decoder.fusions.0.spatial": 0.9, "decoder.fusions.0.channel": 0.8 if seed else 0.6}
        cell = Cell(arm="ddsm", fold=fold, seed=seed)
        write_log(folder, matrix, cell, miou + gain, boundary_f + boundary_gain, taps)
    write_log(folder, matrix, Cell(arm="s", fold="south", seed=1), 99.0, 99.0)


def rows(lines: list[str], head: str) -> dict[str, list[str]]:
    """The rows of the table whose first column has this head, by their first cell."""
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {head} |"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[first] = cells
    return found


def test_tables_have_means_differences_and_verdicts(tmp_path: Path) -> None:
    matrix = small(tmp_path)
    write_scores(matrix, tmp_path)
    lines = section(matrix, load_results(matrix, tmp_path))
    arms = rows(lines, "Arm")
    # the two seeds of north count as one fold: (61 + 50) / 2
    assert arms["`plain`"] == ["uper_tiny", "3", "55.50", "35.50", "-", "-", "-", "1.50", "2.50", "60"]
    assert arms["`ddsm`"][:4] == ["S + C", "3", "57.50", "35.47"]
    assert arms["`ddsm`"][4:7] == ["90% (90%)", "67% (60%)", "-"]
    miou, boundary_f = (rows(lines, f"{measure} over `plain`") for measure in ("mIoU", "F 1 px"))
    # gains 1, 2, 3: half-width 4.303 / sqrt(3), t = 2 sqrt(3), p = 0.0742 at 2 degrees of freedom, doubled by Holm
    # over folds: (1 + 3) / 2 and 2
    assert miou["`ddsm`"] == ["3", "+2.00", "[-0.48, +4.48]", "[+2.00, +2.00]", "0.148", "0.932", "undecided"]
    assert boundary_f["`ddsm`"][:3] == ["3", "+0.00", "[-0.25, +0.25]"]
    assert boundary_f["`ddsm`"][-1] == "equivalent"
    assert set(miou) == {"`ddsm`"}, "s has no pair"
    assert list(rows(lines, "Others over `plain`")) == ["`ddsm`"]
    assert "F 3 px (0.375 %) | F 3 px (0.5 %)" in "\n".join(lines)
    assert "| south | 0 | 52.00 - 50.00 | 29.90 - 30.00 |" in lines


def test_a_verdict_needs_the_folds_too() -> None:
    """Six pairs of three folds that differ more than the seeds do."""
    gains = {"a": (0.9, 1.1), "b": (1.9, 2.1), "c": (0.3, 0.5)}
    pairs = paired([gain for fold in gains.values() for gain in fold])
    folds = paired([sum(fold) / 2 for fold in gains.values()])
    assert pairs.low > 0 > folds.low
    assert borne_out(pairs, folds, pairs.p) == "undecided"
    assert borne_out(pairs, pairs, pairs.p) == "help"
    assert borne_out(paired([0.1, -0.1, 0.0, 0.05]), folds, 1.0) == "equivalent"


def test_missing_cells_are_named(tmp_path: Path) -> None:
    matrix = small(tmp_path)
    write_scores(matrix, tmp_path)
    lines = section(matrix, load_results(matrix, tmp_path))
    assert "7 of 20 cells are finished" in lines[0]
    assert lines[lines.index("Missing:") + 2 :] == [
        "- `plain`: south seed 1",
        "- `ddsm`: south seed 1",
        "- `s`: north seed 0, south seed 0, north seed 1",
        "- `c`: all runs",
        "- `dcn`: all runs",
    ]
    assert "Missing:" in section(matrix, {})


def test_a_page_is_made_and_made_again_between_its_markers(tmp_path: Path) -> None:
    matrix, page = small(tmp_path), tmp_path / "page.md"
    assert write_page([(matrix, tmp_path)], page) == 20
    assert "Fixed before the first run" in page.read_text()
    page.write_text(page.read_text().replace("# Results", "# My page") + "The end.\n")
    write_scores(matrix, tmp_path)
    assert write_page([(matrix, tmp_path)], page) == 13
    text = page.read_text()
    assert text.startswith("# My page")
    assert text.endswith("The end.\n")
    assert text.index("Fixed before") < text.index("| `ddsm` |")
    write_page([(matrix, tmp_path)], page)
    assert page.read_text() == text


def test_a_page_without_markers_and_a_log_without_a_score_are_refused(tmp_path: Path) -> None:
    matrix, page = small(tmp_path), tmp_path / "page.md"
    page.write_text("<!-- rules:begin -->\n<!-- rules:end -->\n")
    expect_one_line(lambda: write_page([(matrix, tmp_path)], page), "<!-- small:begin -->", kind=ValueError)
    log = write_log(tmp_path, matrix, matrix.cells()[0], 50.0, 40.0)
    for text in (log.read_text().rsplit("\n", 2)[0], "no json", ""):
        log.write_text(text)
        expect_one_line(lambda: load_results(matrix, tmp_path), str(log), "remove it", kind=ValueError)


def test_logs_of_another_recipe_and_of_other_images_are_not_on_the_page(tmp_path: Path) -> None:
    matrix = small(tmp_path)
    write_scores(matrix, tmp_path)
    path = tmp_path / "ddsm-north-0.jsonl"
    whole = path.read_text()
    first, *rest = whole.splitlines()
    for key, change, expected in (
        ("recipe", {"lr": 0.125}, "another recipe.lr"),
        ("images", {"train": 4}, "other images than the other logs of fold north"),
    ):
        record = json.loads(first)
        record[key] |= change
        path.write_text("\n".join([json.dumps(record), *rest]) + "\n")
        expect_one_line(lambda: load_results(matrix, tmp_path), str(path), expected, kind=ValueError)
    path.write_text(whole)
    assert len(load_results(matrix, tmp_path)) == 7


@pytest.mark.parametrize("name", ["screening", "decision", "membrane", "deeplab", "weights"])
def test_the_page_of_the_project_is_what_its_logs_make(name: str, tmp_path: Path) -> None:
    from tests.support.pages import ROOT

    matrix = Matrix.load(ROOT / "benchmarks" / "evidence" / f"{name}.toml")
    page = tmp_path / "results.md"
    page.write_bytes((ROOT / "docs/results.md").read_bytes())
    write_page([(matrix, ROOT / "docs" / "results" / name)], page)
    assert page.read_text(encoding="utf-8") == (ROOT / "docs/results.md").read_text(encoding="utf-8")
