"""Lock on the folder of a run. Two trainings in one folder would mix their logs and states."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddsm_zoo.errors import UserError
from ddsm_zoo.utils.files import OutputError, write_json

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where the owner's file alone guards the folder
    fcntl = None  # type: ignore[assignment]

LOCK, OWNER = ".lock", ".owner.json"
BEAT = 10.0  # seconds between two signs of life of the process that trains

logger = logging.getLogger(__name__)


class FolderInUseError(UserError, ValueError):
    """Raised if another process trains in the folder. The text is one line that names the process."""

    kind = "folder-in-use"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training in ``folder`` while the block runs.

    The system's lock ends with its process, however that ends. Some network file systems have no locks, or grant them
    to everybody. A file therefore also names the process that trains, with a sign of life every `BEAT` seconds: a
    process on this machine is looked up, one on another machine is taken for dead if its signs stop.

    Raises:
        FolderInUseError: Another process trains in the folder.
        OutputError: The folder cannot be written.
    """
    owner, here = folder / OWNER, _this_process()
    other = _read(owner)
    if other and other["host"] == here["host"] and _runs(other):
        raise _in_use(folder, other)
    with _system_lock(folder):
        if other and other["host"] != here["host"] and _beats(owner, other):
            raise _in_use(folder, other)
        write_json(owner, here)
        ended = threading.Event()
        pulse = threading.Thread(target=_beat, args=(owner, here, ended), daemon=True)
        pulse.start()
        try:
            yield
        finally:
            ended.set()
            pulse.join()
            with contextlib.suppress(OSError):
                owner.unlink(missing_ok=True)


@contextlib.contextmanager
def _system_lock(folder: Path) -> Iterator[None]:
    """Hold the system's lock. A file system without locks causes a warning."""
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise OutputError(error.errno, error.strerror, str(path)) from error
    with file:
        if fcntl is not None:
            try:
                # Unlike flock's, this lock is not inherited by loading processes, which may outlive a killed training.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise _in_use(folder, _read(folder / OWNER)) from error
                logger.warning(
                    "%s lies on a file system without locks (%s): %s alone keeps a second training out of it",
                    folder,
                    error.strerror,
                    OWNER,
                )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _in_use(folder: Path, other: dict[str, Any] | None) -> FolderInUseError:
    who = "another process"
    if other:
        who = f"process {other['pid']} on {other['host']}, which began at {other['began']}"
    text = f"{folder} is in use by {who}: wait for it, stop it, or choose another folder"
    return FolderInUseError(text, path=folder, got=other and (other["host"], other["pid"]))


def _this_process() -> dict[str, Any]:
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "created": _created(os.getpid()), "began": now, "beat": 0}


def _created(pid: int) -> float | None:
    """Return when a process was created, None if it has ended."""
    import psutil  # comes with accelerate, which trains

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def _runs(other: dict[str, Any]) -> bool:
    """Return True if a process of this machine still runs. A later one with its number was created at another time."""
    created = _created(other["pid"])
    return created is not None and abs(created - other["created"]) < 2


def _beats(owner: Path, other: dict[str, Any]) -> bool:
    """Watch whether a process on another machine still gives signs of life, without relying on either clock."""
    wait = 2.5 * BEAT
    logger.warning(
        "%s names process %d on %s, which did not end in order: waiting %.0f s for a sign of life",
        owner,
        other["pid"],
        other["host"],
        wait,
    )
    end = time.monotonic() + wait
    while time.monotonic() < end:
        time.sleep(wait / 25)
        if (now := _read(owner)) is not None and now != other:
            return True
    return False


def _beat(owner: Path, here: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        here["beat"] += 1
        with contextlib.suppress(OSError):  # a full disk must not end the run from here
            write_json(owner, here)


def _read(owner: Path) -> dict[str, Any] | None:
    """Read the process that an owner's file names. None without one, or if it is damaged."""
    try:
        content = json.loads(owner.read_text(encoding="utf-8"))
        return {
            "pid": int(content["pid"]),
            "host": str(content["host"]),
            "created": float(content["created"]),
            "began": str(content["began"]),
            "beat": int(content["beat"]),
        }
    except (OSError, ValueError, LookupError, TypeError):
        return None
