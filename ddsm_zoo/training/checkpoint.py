"""Files of a training run: weights, resumable state and log. Each is either complete or absent."""

from __future__ import annotations

import io
import json
import logging
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

from ddsm_zoo.errors import MissingFileError
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.distributed import rank
from ddsm_zoo.utils.files import CheckpointError, OutputError, atomic_path, write_text

logger = logging.getLogger(__name__)

_FORMAT = 1
PIXELS = "pixels of each class"  # part of a run's identity that may change: people mend masks
# The last state, and the previous one as the fallback if the last is damaged
_STATE, _BEFORE = "last/state.pt", "last/before.pt"
# Recipe fields that may change when a run is resumed. No result depends on the workers or on how often the state is
# saved. A run may be made longer or shorter; its learning rate then follows the new length.
_FREE_FIELDS = ("workers", "epochs", "patience", "save_every")


def save_weights(path: str | os.PathLike[str], state: Mapping[str, Tensor]) -> None:
    """Write a state dict as float32 safetensors, without the "auxiliary.*" tensors.

    Args:
        path: Path of the file.
        state: Tensors by name.

    Raises:
        OutputError: The file cannot be written. An older file then stays.
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
    """Write a resumable state of tensors and plain data as one file. Raises OutputError; an older file then stays."""
    with atomic_path(path) as temporary:
        _write_state(temporary, state)


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the file of `save_state` with all tensors on the CPU. No code in the file is executed.

    Raises FileNotFoundError, or CheckpointError for a file that is damaged or not a training state.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no training state at {path}, expected the state.pt of an earlier run", path=path)
    try:
        # torch.load itself does not verify the checksums of the archive.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() is not None
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError):
        damaged = True
    if damaged:
        raise CheckpointError(f"{path} is damaged: delete it to train from the start", kind="damaged-state", path=path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, LookupError, pickle.UnpicklingError):
        state = None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is not a training state of format {_FORMAT}: delete it to train from the start",
            kind="damaged-state",
            path=path,
        )
    return state


def has_state(out_dir: Path) -> bool:
    """Return True if the folder holds a state to resume from, damaged or not."""
    return (out_dir / _STATE).exists() or (out_dir / _BEFORE).exists()


def save_last_state(out_dir: Path, state: Mapping[str, Any]) -> None:
    """Save the state of a run and keep the previous one, so that one of the two survives a kill at any time."""
    path = out_dir / _STATE
    with atomic_path(path) as temporary:
        _write_state(temporary, state)
        if path.exists():
            os.replace(path, out_dir / _BEFORE)


def load_last_state(out_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Load the last undamaged state of a run and return its file with it.

    Logs a warning if that is the previous state. Raises CheckpointError if both are damaged.
    """
    path, before = out_dir / _STATE, out_dir / _BEFORE
    try:
        return path, load_state(path)
    except (FileNotFoundError, CheckpointError):
        if not before.exists():
            raise
    missing = not path.exists()
    try:
        state = load_state(before)
    except CheckpointError as error:
        if missing:
            raise
        raise CheckpointError(
            f"{path} and {before} are damaged: delete both to train from the start", kind="damaged-state", path=path
        ) from error
    if rank() == 0:
        position = state["position"]
        logger.warning(
            "%s is %s: going on from the state before it, after epoch %d and step %d of the next",
            path, "missing" if missing else "damaged", position["epoch"], position["step"],
        )  # fmt: skip
    return before, state


def check_parts(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless ``state`` has the parts that say which run it belongs to."""
    for name, kind in (("recipe", Mapping), ("images", int), ("position", Mapping)):
        if not isinstance(state.get(name), kind):
            raise CheckpointError(
                f"{path} is not the state of a run, it has no {name}: delete it to train from the start",
                kind="damaged-state",
                path=path,
                name=name,
            )


def promote_state(out_dir: Path, path: Path | None) -> None:
    """Make ``path`` the last state of the resumed run, and remove unfinished files of a killed run.

    A damaged last state must not become the previous one. Temporary files may each be as large as a state.
    """
    if path == out_dir / _BEFORE:
        os.replace(path, out_dir / _STATE)
    unfinished = "." + 32 * "[0-9a-f]" + ".*"
    for leftover in (*out_dir.glob(unfinished), *out_dir.glob(f"*/{unfinished}")):
        leftover.unlink()


def check_continues(
    path: str | os.PathLike[str], state: Mapping[str, Any], recipe: Recipe, images: int, identity: Mapping[str, Any]
) -> None:
    """Raise CheckpointError unless ``state`` comes from a run with this recipe, images and ``identity``.

    Masks that have changed since are logged.
    """
    check_parts(path, state)
    for name, value in identity.items():
        # States of earlier versions have no identity
        known = state.get("identity", {}).get(name, value)
        if known != value and name == PIXELS:
            logger.warning("the masks have changed since the run began: other %s", name)
        elif known != value:
            raise CheckpointError(
                f"{path} was made with other {name}: {_difference(known, value)}; resume with those of that run, "
                "or begin a new run in another folder",
                kind="other-data",
                path=path,
                name=name,
                got=value,
                expected=known,
            )
    wanted = recipe.to_plain()
    # A field that did not exist when the run began had no effect, like its default, except for the samplers' rate.
    saved = {**Recipe(model=recipe.model).to_plain(), "sampler_lr_mult": 1.0, **state["recipe"]}
    changed = sorted(
        name
        for name in wanted.keys() | saved.keys()
        if name not in _FREE_FIELDS and wanted.get(name) != saved.get(name)
    )
    if changed:
        raise CheckpointError(
            f"{path} was made with another {', '.join(changed)}; resume with the recipe of that run",
            kind="other-recipe",
            path=path,
            got=changed,
        )
    if state["images"] != images:
        raise CheckpointError(
            f"{path} was made on {state['images']} training images, got {images}; resume on the data of that run",
            kind="other-data",
            path=path,
            got=images,
            expected=state["images"],
        )


def _difference(known: Any, value: Any) -> str:
    """Name the first difference of two lists, or the two values."""
    if not isinstance(known, list) or not isinstance(value, list):
        return f"{known}, got {value}"
    if len(known) != len(value):
        return f"{len(known)}, got {len(value)}"
    index = next(index for index, pair in enumerate(zip(known, value, strict=True)) if pair[0] != pair[1])
    return f"number {index} was {known[index]!r}, got {value[index]!r}"


class RunLog:
    """Append-only ``log.jsonl`` with one JSON object per line. Non-finite numbers become null.

    Opening the log keeps the lines of the first ``epochs`` epochs, which the resumed state includes. Later lines and a
    line that a crash left incomplete are dropped. ``epochs`` None starts an empty log. Raises OutputError.
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
                file.flush()
                os.fsync(file.fileno())  # a state saved later must not survive a crash that loses this line
        except OSError as error:
            raise OutputError(error.errno, error.strerror, str(self.path)) from error


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    # Through memory, because torch's own writer turns a full disk into a RuntimeError of many lines.
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    with path.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # a full disk may raise an error only here


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
