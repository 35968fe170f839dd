"""The shell commands of the pages, run in this process: a process of their own would import torch for each."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import huggingface_hub.constants
import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement

from ddsm_zoo.cli import app
from ddsm_zoo.training.recipe import tomllib
from tests.support.command_line import run_command, run_speed
from tests.support.pages import ROOT

_VARIABLE = re.compile(r"[A-Z_]+=")

Command = Callable[[Sequence[str]], object]


def commands_of(code: str) -> list[list[str]]:
    """The commands of a block, each as its words, without comments."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words]


def run_shell(code: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the commands of a block; how many there were."""
    words = commands_of(code)
    for command in words:
        while _VARIABLE.match(command[0]):
            name, _, value = command.pop(0).partition("=")
            assert name == "HF_HOME", f"what {name} does is unknown here"
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", value)
        _carry_out(command, RUN)
    return len(words)


def check_shell(code: str) -> int:
    """Look whether the commands of a block could be run as they are; how many there were."""
    words = commands_of(code)
    for command in words:
        _carry_out(command, CHECK)
    return len(words)


def _carry_out(words: Sequence[str], known: Mapping[str, Command]) -> None:
    assert words[0] in known, f"no way to try {words[0]} here; is the block to be marked as not run?"
    known[words[0]](words[1:])


def run_script(words: Sequence[str]) -> None:
    if words[0] == "-m":
        run_module(words[1:])
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(words))
        patch.syspath_prepend(str(Path(words[0]).parent.resolve()))  # as for a script
        runpy.run_path(words[0], run_name="__main__")


def run_module(words: Sequence[str]) -> None:
    if words[0] == "benchmarks.evidence":  # it finds its files beside itself, and starts processes of its own
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        subprocess.run([sys.executable, "-m", *words], check=True, env={**os.environ, "PYTHONPATH": path})
        return
    assert words[0] == "benchmarks.speed"
    run_speed(*words[1:])


def check_script(words: Sequence[str]) -> None:
    path = words[0]
    if path == "-m":
        folder = words[1].replace(".", "/")
        path = f"{folder}/__main__.py" if (ROOT / folder).is_dir() else f"{folder}.py"
    compile((ROOT / path).read_text(encoding="utf-8"), path, "exec")


def check_zoo(words: Sequence[str]) -> None:
    """Parse the options as the command would, and leave it there."""
    group = typer.main.get_command(app)
    with group.make_context("ddsm-zoo", list(words)) as context:
        _, rest, _ = group.make_parser(context).parse_args(list(words))  # options before the command
        name, command, rest = group.resolve_command(context, rest)
        command.make_context(name, rest, parent=context)


def check_launch(words: Sequence[str]) -> None:
    """Parse the launcher's options with its own parser, and what it launches with ours."""
    assert words[0] == "launch"
    options = launch_command_parser().parse_args(list(words[1:]))
    assert options.module
    assert options.training_script == "ddsm_zoo"
    check_zoo(options.training_script_args)


def check_pip(words: Sequence[str]) -> None:
    """The package and the extras that are to be installed are ours."""
    assert words[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, words[1:]):
        assert requirement.name == project["name"]
        assert requirement.extras <= set(project["optional-dependencies"])


def check_make(words: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def check_bash(words: Sequence[str]) -> None:
    if words[0] == "-c":
        check_shell(words[1])
    else:  # a script of ours
        assert (ROOT / words[0]).is_file(), words[0]


def check_srun(words: Sequence[str]) -> None:
    _carry_out(words, CHECK)


def run_zoo(words: Sequence[str]) -> None:
    run_command(*words)


RUN: Mapping[str, Command] = {"ddsm-zoo": run_zoo, "python": run_script, "pip": check_pip}
CHECK: Mapping[str, Command] = {
    "ddsm-zoo": check_zoo,
    "python": check_script,
    ".venv/browser/bin/python": check_script,
    "pip": check_pip,
    "make": check_make,
    "accelerate": check_launch,
    "bash": check_bash,
    "srun": check_srun,
    "export": lambda words: None,
}
