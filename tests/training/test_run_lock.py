"""Folders of runs that two processes want, on file systems with locks and without."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddsm_zoo.training import run_lock
from ddsm_zoo.training.run_lock import LOCK, OWNER, FolderInUseError, lock_folder
from ddsm_zoo.utils.files import OutputError
from tests.support.errors import raises

HOLD = """
import sys
from pathlib import Path
from ddsm_zoo.training.run_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains in the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def lose_locks(monkeypatch: pytest.MonkeyPatch, number: int | None = None) -> None:
    """The file system grants every lock, or refuses all of them with an error number."""

    def lockf(*_: object) -> None:
        if number is not None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)


@pytest.mark.parametrize("works", [True, False], ids=["locks", "lost locks"])
def test_a_second_process_is_refused_and_a_killed_one_is_succeeded(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:
        lose_locks(monkeypatch)
    with (
        raises(FolderInUseError, kind="folder-in-use", path="run", got=(socket.gethostname(), holder.pid)),
        lock_folder(tmp_path / "run"),
    ):
        pass
    holder.kill()
    holder.wait()
    with lock_folder(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / OWNER).read_text())["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_whose_process_is_unknown_is_respected(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "run" / OWNER).write_text("{")
    with raises(FolderInUseError, path="run", got=None), lock_folder(tmp_path / "run"):
        pass


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text(json.dumps({**run_lock._this_process(), "created": 1.0}))
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["created"] != 1.0


def test_a_thread_of_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        with raises(FolderInUseError, got=(socket.gethostname(), os.getpid())), lock_folder(tmp_path):
            pass
        assert (tmp_path / OWNER).exists()
    assert not (tmp_path / OWNER).exists()


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lose_locks(monkeypatch, errno.ENOLCK)
    with lock_folder(tmp_path):
        assert "file system without locks (No locks available)" in caplog.text
        with pytest.raises(FolderInUseError), lock_folder(tmp_path):
            pass


def test_a_process_on_another_machine_is_alive_while_it_gives_signs(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines that share a folder whose locks each of them has on its own."""
    lose_locks(monkeypatch)
    monkeypatch.setattr(run_lock, "BEAT", 0.05)
    owner = tmp_path / "other" / OWNER
    elsewhere = {**run_lock._this_process(), "host": "elsewhere", "pid": 7}
    owner.parent.mkdir()
    owner.write_text(json.dumps(elsewhere))
    beating = [sys.executable, "-c", BEATING, str(owner)]
    with subprocess.Popen(beating, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with raises(FolderInUseError, got=("elsewhere", 7)), lock_folder(owner.parent):
            pass
        process.kill()
    with lock_folder(owner.parent):  # the signs have stopped
        assert json.loads(owner.read_text())["pid"] == os.getpid()


BEATING = """
import json, os, sys, time
path, beat = sys.argv[1], 0
content = json.load(open(path))
while True:
    beat += 1
    with open(path + ".new", "w") as file:
        json.dump({**content, "beat": beat}, file)
    os.replace(path + ".new", path)
    print(beat, flush=True)
    time.sleep(0.02)
"""


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    with raises(OutputError, path=LOCK, errno=errno.ENOTDIR), lock_folder(folder):
        pass
