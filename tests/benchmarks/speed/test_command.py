"""What the command refuses: options that the suite would not read, and inputs that cannot be measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import run_speed

VALUES = {
    "size": "64",
    "side": "8",
    "precision": "bf16",
    "batch": "2",
    "compile": None,
    "model": "uper_ddsm_lite0_camvid",
    "data": "scenes:1",
    "split": "val",
    "repeats": "1",
    "plot": "growth.png",
    "busy": None,
}
READ = {
    "op": {"side", "precision", "repeats", "busy"},
    "models": {"size", "batch", "precision", "compile", "repeats", "busy"},
    "growth": {"side", "repeats", "plot"},
    "precision": {"model", "data", "split"},
}


@pytest.mark.parametrize(
    ("suite", "option"), [(suite, option) for suite, read in READ.items() for option in VALUES if option not in read]
)
def test_options_of_other_suites(suite: str, option: str) -> None:
    value = VALUES[option]
    result = run_speed("--suite", suite, f"--{option}", *([value] if value else []), fails=1)
    message = " ".join(result.stderr.split())
    assert f"the suite {suite} has no use for --{option}, expected only --" in message
    assert {name for name in VALUES if f"--{name}" in message.split("expected only")[1]} == READ[suite]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "models", "--size", "0"], "size is '0', expected pixels"),
        (["--suite", "models", "--size", ""], "size is '', expected pixels"),
        (["--suite", "growth", "--side", "64", "--repeats", "1"], "expected at least two to see growth"),
        (["--suite", "growth", "--plot", "growth.doc"], "the plot is to be growth.doc, expected a name that ends in"),
        (["--suite", "precision"], "the suite precision labels images, expected --data SPEC"),
        (["--suite", "precision", "--data", "camvid:nowhere"], "nowhere"),
        (["--suite", "precision", "--data", "scenes:1", "--model", "uper_tiny"], "is an architecture without task"),
        (["--suite", "op", "--json", "."], "it is a folder, expected a file"),
    ],
)
def test_what_cannot_be_measured(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_speed(*arguments, fails=1)
    assert message in " ".join(result.stderr.split())
