"""Names of the files of a saved model, and their place on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ddsm_zoo.errors import MissingFileError
from ddsm_zoo.utils.files import atomic_path

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"


def find_weights(path: str | os.PathLike[str]) -> Path:
    """Find the safetensors file at ``path``: the file itself, or one in the folder of a saved model or training run.

    Raises FileNotFoundError.
    """
    path = Path(path).expanduser()
    candidates = (path, path / WEIGHTS_FILE, path / "best" / WEIGHTS_FILE)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise MissingFileError(
            f"no weights at {path}: expected a .safetensors file or a folder with {WEIGHTS_FILE} or "
            f"best/{WEIGHTS_FILE}",
            path=path,
        )
    return found


def write_files(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write each file of a model into ``folder``, in the given order, each one atomically.

    Raises OutputError.
    """
    for name, content in files.items():
        with atomic_path(Path(folder).expanduser() / name) as temporary:
            temporary.write_bytes(content)
