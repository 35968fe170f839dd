"""The files of a training run: weights, the state to resume from, and a log. Each is whole or absent."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ddsm_zoo.files import OutputError, atomic_path, write_text

_FORMAT = 1
# Fields of a recipe that may change within a run: no number depends on the workers, and a run may be made longer or
# shorter, its learning rate then following the new length.
_FREE_FIELDS = ("workers", "epochs")


class CheckpointError(ValueError):
    """A training state that cannot be resumed: names the file and what is wrong with it."""


def save_weights(path: str | os.PathLike[str], state: Mapping[str, Tensor]) -> None:
    """Write the tensors of a state dict as float32 safetensors, without the "auxiliary.*" ones.

    Raises OutputError when the file cannot be written; an older one then stays.
    """
    tensors = {
        name: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in state.items()
        if not name.startswith("auxiliary.")
    }
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a resumable state of tensors and plain data as one file. Raises OutputError; an older one then stays."""
    # Through memory: torch's own writer turns a full disk into a RuntimeError of many lines.
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_state` wrote, with all tensors on the CPU and without running anything from the file.

    Raises FileNotFoundError, or CheckpointError for a file that is damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no training state at {path}, expected the state.pt of an earlier run")
    try:
        # torch.load itself does not look at the checksums of the archive.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() is not None
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError):
        damaged = True
    if damaged:
        raise CheckpointError(f"{path} is damaged: delete it to train from the start")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, LookupError, pickle.UnpicklingError):
        state = None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a training state of format {_FORMAT}: delete it to train from the start")
    return state


def check_continues(
    path: str | os.PathLike[str], state: Mapping[str, Any], recipe: Mapping[str, Any], images: int
) -> None:
    """Raise CheckpointError unless ``state`` is of a run with this recipe on this many training images."""
    saved = state["recipe"]
    changed = sorted(
        name
        for name in recipe.keys() | saved.keys()
        if name not in _FREE_FIELDS and recipe.get(name) != saved.get(name)
    )
    if changed:
        raise CheckpointError(f"{path} was made with another {', '.join(changed)}; resume with the recipe of that run")
    if state["images"] != images:
        raise CheckpointError(
            f"{path} was made on {state['images']} training images, got {images}; resume on the data of that run"
        )


def discard_unfinished(out_dir: Path) -> None:
    """Remove the temporary files that a killed run left in ``last`` and ``best``: each is as large as a state."""
    for leftover in out_dir.glob("*/." + 32 * "[0-9a-f]" + ".*"):
        leftover.unlink()


class RunLog:
    """``log.jsonl``: one JSON object a line, appended. What is not finite becomes null.

    Opening it keeps the lines of the first ``epochs`` epochs, which the resumed state has behind it, and drops
    later ones and a line that a crash left torn; ``epochs`` None begins an empty log. Raises OutputError.
    """

    def __init__(self, path: str | os.PathLike[str], epochs: int | None) -> None:
        self.path = Path(path)
        kept = []
        if epochs is not None and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _belongs(line, epochs)]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, event: str, **fields: object) -> None:
        text = json.dumps(_json_ready({"event": event, **fields}), ensure_ascii=False, allow_nan=False)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise OutputError(error.errno, error.strerror, str(self.path)) from error


def _belongs(line: str, epochs: int) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and entry.get("epoch", 0) <= epochs


def _json_ready(data: object) -> object:
    if isinstance(data, Mapping):
        return {str(key): _json_ready(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_json_ready(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
