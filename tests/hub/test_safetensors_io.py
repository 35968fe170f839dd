"""Safetensors files that are damaged, malicious or something else: refused in one line, and nothing is executed."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.hub.safetensors_io import pack_tensors, read_tensors, verify
from ddsm_zoo.utils.files import CheckpointError, LocalFile, sha256_of
from tests.support.errors import raises
from tests.support.tiny_weights import write

TENSORS = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.steps": torch.tensor(7)}


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = pack_tensors(TENSORS)
OVERLAP = json.dumps({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}).encode()
UNSIGNED = safetensors.torch.save({"a": torch.zeros(3, dtype=torch.uint8)})
DAMAGED = {
    "empty": (b"", "damaged-weights"),
    "short": (GOOD[:5], "damaged-weights"),
    "cut in the header": (GOOD[:30], "damaged-weights"),
    "cut in the tensors": (GOOD[:-40], "damaged-weights"),
    "too long": (GOOD + b"more", "damaged-weights"),
    "huge header": (struct.pack("<Q", 2**40) + GOOD[8:], "damaged-weights"),
    "header is no JSON": (with_header(b"{nothing"), "damaged-weights"),
    "overlapping offsets": (with_header(OVERLAP, bytes(12)), "damaged-weights"),
    "offset beyond the file": (
        with_header(json.dumps({"a": entry("F32", [9], 0, 36)}).encode(), bytes(8)),
        "damaged-weights",
    ),
    "unknown type": (with_header(json.dumps({"a": entry("Q99", [1], 0, 4)}).encode(), bytes(4)), "damaged-weights"),
    "type that weights never have": (UNSIGNED, "weights-mismatch"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(64), "damaged-weights"),
    "a pickle": (pickle.dumps({"a": 1}), "unsafe-file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_weights(tmp_path: Path, case: str) -> None:
    content, kind = DAMAGED[case]
    with raises(CheckpointError, kind=kind, path="model.safetensors"):
        read_tensors(write(tmp_path / "model.safetensors", content))


def test_names_that_would_fill_or_deceive_a_terminal(tmp_path: Path) -> None:
    name = "\x1b[2J\n" + "a" * 10_000
    content = safetensors.torch.save({name: torch.zeros(1, dtype=torch.uint8)})
    with raises(CheckpointError, kind="weights-mismatch") as error:
        read_tensors(write(tmp_path / "model.safetensors", content))
    assert "?[2J?aaa" in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_a_torch_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    with raises(CheckpointError, kind="unsafe-file", path=path):
        read_tensors(path)


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_arbitrary_bytes_are_tensors_or_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, position: int
) -> None:
    path = write(tmp_path_factory.mktemp("fuzz") / "model.safetensors", GOOD[:position] + content)
    with contextlib.suppress(CheckpointError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_tensors(path).values())


@pytest.mark.parametrize("length", range(60, 190, 8))
def test_headers_of_any_length(tmp_path: Path, length: int) -> None:
    """A header of 128 bytes begins with the byte that a pickle begins with."""
    header = json.dumps({"a": entry("F32", [1], 0, 4)}).encode().ljust(length)
    assert read_tensors(write(tmp_path / "model.safetensors", with_header(header, bytes(4))))["a"] == 0


def test_the_same_tensors_give_the_same_bytes() -> None:
    assert pack_tensors(dict(reversed(TENSORS.items()))) == pack_tensors(TENSORS)


def test_a_hash_that_does_not_match(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", GOOD)
    assert verify(LocalFile(path=path), None) == verify(LocalFile(path=path), sha256_of(path))
    with raises(CheckpointError, kind="damaged-weights", got=sha256_of(path), expected="0" * 64):
        verify(LocalFile(path=path), "0" * 64)
