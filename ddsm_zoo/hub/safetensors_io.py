"""Safetensors files: reading untrusted ones, and writing. No pickle is ever opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddsm_zoo.errors import MissingFileError
from ddsm_zoo.utils.files import CheckpointError, LocalFile, sha256_of
from ddsm_zoo.utils.plain_data import printable

MAX_HEADER_BYTES = 16 * 2**20
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file. Raises CheckpointError for other files, above all pickles."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist, expected a safetensors file", path=path)
    _check_header(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = printable(" ".join(str(error).split()))
        raise CheckpointError(
            f"{path} is damaged, expected a whole safetensors file: {reason}", kind="damaged-weights", path=path
        ) from error
    strange = [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in DTYPES]
    if strange:
        raise CheckpointError(
            f"{path} has tensors of types that weights never have: {abbreviate(strange)}",
            kind="weights-mismatch",
            path=path,
        )
    return tensors


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialize tensors as a safetensors file. The same tensors always give the same bytes."""
    return safetensors.torch.save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def verify(file: LocalFile, expected: str | None) -> str:
    """Return the file's SHA-256. Raises CheckpointError if it differs from ``expected``, unless that is None."""
    found = file.sha256 or sha256_of(file.path)
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{file.path} has sha256 {found[:16]}..., expected {expected[:16]}...: it is damaged, it was changed or "
            "saving it was interrupted; save it again, or delete it and fetch it again",
            kind="damaged-weights",
            path=file.path,
            got=found,
            expected=expected,
        )
    return found


def abbreviate(items: list[str]) -> str:
    """Join at most three of the items, which may be names from outside, and the number of the others."""
    rest = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(printable, items[:3])) + rest


def _check_header(path: Path) -> None:
    """Refuse a file that cannot be safetensors before any memory is allocated for it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or length > MAX_HEADER_BYTES:
        if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5"):
            raise CheckpointError(
                f"{path} is a pickle, which can run code; expected safetensors: convert a state dict by "
                "`ddsm-zoo import FILE DIR --model NAME`",
                kind="unsafe-file",
                path=path,
            )
        raise CheckpointError(
            f"{path} ({size} bytes) is not a safetensors file; expected one that save_pretrained wrote",
            kind="damaged-weights",
            path=path,
        )
    if length > size - 8:
        raise CheckpointError(
            f"{path} is cut short: {size} bytes, expected more than {length + 8}; fetch it again",
            kind="damaged-weights",
            path=path,
            got=size,
        )
