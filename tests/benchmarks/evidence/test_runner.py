"""The road from nothing to the page, and what a kill, a foreign log or a second runner does to it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from benchmarks.evidence.__main__ import main
from benchmarks.evidence.cell import BUSY, INTERRUPTED
from ddsm_zoo import create_model, evaluate
from tests.support.matrices import QUICK

CELLS = ("plain-north-0", "ddsm-north-0", "plain-south-0", "ddsm-south-0")


def words(command: str, out: Path, *more: str) -> list[str]:
    return [command, str(QUICK), *more, "--data", "scenes:3", "--out", str(out), "--logs", str(out / "logs")]


def log(out: Path, cell: str) -> Path:
    return out / "logs" / "quick" / f"{cell}.jsonl"


def score(path: Path) -> dict[str, Any]:
    """What is scored; clocks differ from run to run."""
    line: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole quick run, two cells at a time, by the documented command."""
    out = tmp_path_factory.mktemp("finished")
    assert main([*words("run", out), "-j", "2", "--page", str(out / "page.md")]) == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of it. Its folds are links to the original's scenes, and so another source."""
    shutil.copytree(finished / "logs", tmp_path / "logs")
    shutil.copytree(finished / "quick" / "cells", tmp_path / "quick" / "cells")
    return tmp_path


def test_from_nothing_to_the_page(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = (finished / "page.md").read_text()
    assert "4 of 4 cells are finished" in page
    assert "| `ddsm` | 2 |" in page
    assert "Missing" not in page
    for cell in CELLS:
        lines = [json.loads(line) for line in log(finished, cell).read_text().splitlines()]
        assert [line["event"] for line in lines] == ["cell", "start", "epoch", "epoch", "score"]
        assert f"{lines[0]['arm']}-{lines[0]['fold']}-{lines[0]['seed']}" == cell
        assert str(finished) not in log(finished, cell).read_text(), "a log says nothing of the machine's folders"
    before = {cell: log(finished, cell).stat().st_mtime_ns for cell in CELLS}
    assert main(words("run", finished)) == 0
    assert "4 of 4 cells are finished" in capfd.readouterr().out
    assert {cell: log(finished, cell).stat().st_mtime_ns for cell in CELLS} == before


def test_the_score_is_that_of_the_last_step_on_the_fold_that_was_held_out(finished: Path) -> None:
    model = create_model(
        "uper_ddsm_tiny",
        labels=json.loads((finished / "quick/cells/ddsm-south-0/best/config.json").read_text())["label_names"],
        checkpoint_path=finished / "quick/cells/ddsm-south-0/last/model.safetensors",
    )
    figures = evaluate(model, f"camvid:{finished / 'quick/folds/south'}")
    assert figures["miou"] == pytest.approx(score(log(finished, "ddsm-south-0"))["miou"], abs=1e-6)
    assert figures["count"] == 3


def test_a_cell_whose_runner_is_gone_saves_its_state_and_goes_on_to_the_same_score(
    finished: Path, tmp_path: Path
) -> None:
    command = words("cell", tmp_path, "ddsm-north-0")
    assert main([*command, "--parent", str(os.getpid())]) == INTERRUPTED  # nobody is their own parent
    assert not log(tmp_path, "ddsm-north-0").exists()
    assert (tmp_path / "quick/cells/ddsm-north-0/last/state.pt").exists()
    assert main(command) == 0
    assert score(log(tmp_path, "ddsm-north-0")) == score(log(finished, "ddsm-north-0"))


def test_a_killed_cell_is_one_line_and_goes_on_with_the_same_command(
    out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = score(log(out, "plain-south-0"))
    log(out, "plain-south-0").unlink()

    def kill() -> None:
        while not (children := psutil.Process().children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert main(words("run", out)) == 1
    killer.join()
    assert "plain south seed 0: killed by signal 9; its state is kept" in capfd.readouterr().out
    assert main(words("run", out)) == 0
    assert score(log(out, "plain-south-0")) == before


def test_a_cell_that_fails_does_not_keep_the_others(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for cell in ("plain-north-0", "ddsm-south-0"):
        log(out, cell).unlink()
    for state in (out / "quick/cells/plain-north-0/last").glob("*.pt"):
        state.write_bytes(b"damaged")
    assert main([*words("run", out), "-j", "2"]) == 1
    lines = capfd.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("plain north seed 0: failed with status 2: error: ")]
    assert len(failed) == 1
    assert "damaged" in failed[0]
    assert any(line.startswith("3 of 4: ddsm south seed 0: mIoU") for line in lines)
    assert not log(out, "plain-north-0").exists()


def test_a_log_of_another_recipe_is_refused_and_stays(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = log(out, "ddsm-north-0")
    first, *rest = path.read_text().splitlines()
    record = json.loads(first)
    record["recipe"]["lr"] = 0.125
    path.write_text("\n".join([json.dumps(record), *rest]) + "\n")
    foreign = path.read_bytes()
    log(out, "plain-north-0").write_bytes(b"\xff\n")
    torn = log(out, "plain-south-0")
    torn.write_text("\n".join(torn.read_text().splitlines()[:-1]))
    page = out / "page.md"
    assert main([*words("run", out), "--page", str(page)]) == 2
    said = capfd.readouterr()
    refused = [line for line in said.out.splitlines() if "refused" in line]
    assert len(refused) == 3
    for reason in ("another recipe.lr", "not a log of this runner", "ends without a score"):
        assert any(reason in line for line in refused)
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert not page.exists(), "nothing of a foreign log comes into a page"
    assert path.read_bytes() == foreign


def test_a_fold_without_images_is_one_line_and_the_others_go_on(
    finished: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    matrix = out / "matrix.toml"
    text = QUICK.read_text(encoding="utf-8")
    assert text.count('"north", "south"') == 1
    matrix.write_text(text.replace('"north", "south"', '"north", "south", "west"'), encoding="utf-8")
    data = ["--data", f"camvid:{finished / 'quick' / 'scenes3'}", "--out", str(out), "--logs", str(out / "logs")]
    assert main(["run", str(matrix), *data]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if "west" in line] == [
        "quick: refused: the data has no sequence west, it has north (3), south (3)"
    ]
    assert "quick: 4 of 4 cells are finished" in lines
    assert main(["cell", str(matrix), "plain-west-0", *data]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "plain-west-0 has no fold to train on: the data has no sequence west" in line
    matrix.write_text(text.replace('"north", "south"', '"east", "west"'), encoding="utf-8")
    assert main(["run", str(matrix), *data]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "images for none of the folds east, west" in line


def test_a_run_folder_of_another_fold_is_refused(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log(out, "plain-north-0").unlink()
    shutil.copy(out / "quick/cells/plain-south-0/cell.json", out / "quick/cells/plain-north-0/cell.json")
    assert main(words("cell", out, "plain-north-0")) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "another fold, images" in error


def test_two_runners_do_not_train_the_same_cell(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log(out, "plain-north-0").unlink()
    with FileLock(out / "quick/cells/plain-north-0.lock"):
        assert main(words("cell", out, "plain-north-0")) == BUSY
    assert "another process is training it" in capfd.readouterr().out
    assert not log(out, "plain-north-0").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "none.toml", "--data", "scenes:3"], "no matrix at none.toml"),
        (["run", str(QUICK), "--data", "camvid:nowhere"], "nowhere does not exist"),
        (["run", str(QUICK), "--data", "scenes:3", "-j", "0"], "jobs is 0, expected at least 1"),
        (["run", str(QUICK), "--data", "scenes:3", "--device", "gpu"], "expected cpu, cuda or cuda:N"),
        (["cell", str(QUICK), "ddsm-west-0", "--data", "scenes:3"], "no cell ddsm-west-0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out"), "--logs", str(tmp_path / "logs")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not list(tmp_path.iterdir())
