"""Atomic file writes: a temporary file next to the target, then a rename, so files are complete or absent."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddsm_zoo.errors import UserError

# Seconds after which a change of a file changes its modification time on any file system
_SETTLED = 3.0


class OutputError(UserError, OSError):
    """Failed write of a file. The text is one line with the path and the reason, and ``errno`` is kept."""

    kind = "cannot-write"

    def __init__(self, errno: int | None, reason: str | None, path: str) -> None:
        OSError.__init__(self, errno, reason, path)
        self.path = path

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}"


class CheckpointError(UserError, ValueError):
    """Unusable weights or training state. The text is one line with the file and the problem."""

    kind = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """File on this machine, with its SHA-256 where that was computed on the way here, so that nobody reads it again."""

    path: Path
    sha256: str | None = None


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to ``path`` that replaces it if the block ends without an exception.

    The temporary name keeps the suffix, for writers that choose a format by it. Missing parent folders are created. If
    the block fails, the old file stays and the temporary one is removed.

    Raises OutputError for a read-only folder, a full disk and the like. An OSError about another file passes unchanged.
    """
    path = Path(path)
    temporary = path.parent / f".{uuid.uuid4().hex}{path.suffix}"
    try:
        # A rename would replace a device or a pipe such as /dev/null by a plain file.
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it exists and is not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError) or not _concerns(error, path, temporary):
            raise
        raise OutputError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder next to ``path`` that becomes ``path`` if the block ends without an exception.

    If the block fails, the new folder is removed. Missing parent folders are created.

    Raises OutputError if ``path`` exists, and as `atomic_path` does.
    """
    path = Path(path)
    temporary = path.parent / f".{uuid.uuid4().hex}"
    try:
        if path.exists() or path.is_symlink():
            raise OutputError(errno.EEXIST, "it exists already, expected a new folder", str(path))
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        below = temporary in Path(str(error.filename)).parents
        if isinstance(error, OutputError) or not (below or _concerns(error, path, temporary)):
            raise
        raise OutputError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically, as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """Write `to_json` of ``data`` atomically. Raises TypeError, before any write, for data that JSON cannot hold."""
    write_text(path, to_json(data))


def to_json(data: object) -> str:
    """Format as indented JSON with a final newline. NaN and the infinities, which JSON lacks, become null.

    The bytes of a file name that is not UTF-8, which Python reads as lone surrogates, become JSON's escapes for these.
    """
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal. A process reads an unchanged file only once."""
    status = path.stat()
    digest = _sha256 if time.time() - status.st_mtime > _SETTLED else _sha256.__wrapped__
    return digest(path.resolve(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, *_identity: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _concerns(error: OSError, path: Path, temporary: Path) -> bool:
    """Return True if the error is about writing ``path``: no named file, the file itself or a folder above it."""
    named = Path(str(error.filename))
    return error.filename is None or named in (path, temporary) or named in path.parents


def _finite(data: object) -> object:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
