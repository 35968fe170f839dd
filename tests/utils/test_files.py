"""Atomic writing: the target is either the old file or the whole new one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.utils.files import OutputError, atomic_folder, atomic_path, sha256_of, to_json, write_json, write_text
from tests.support.errors import raises

FINITE_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


def test_the_target_appears_only_at_the_end_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "weights.safetensors"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".safetensors"
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "log.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(failure), atomic_path(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise failure
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert target.read_text(encoding="utf-8") == "first"  # the outer block ends last


def test_a_full_disk_is_one_line_with_path_and_reason(tmp_path: Path) -> None:
    target = tmp_path / "last.safetensors"
    with pytest.raises(OutputError) as caught, atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value) == f"cannot write {target}: No space left on device"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # crosses process borders
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with raises(OutputError, path="file/out.txt"):
        write_text(tmp_path / "file" / "out.txt", "text")


def test_a_folder_in_place_of_the_file_and_a_device_are_left_alone(tmp_path: Path) -> None:
    for target in (tmp_path, Path("/dev/null"), Path()):
        with raises(OutputError, path=target, errno=errno.EINVAL):
            write_text(target, "text")
    assert not Path("/dev/null").is_file()


def test_a_place_where_nobody_may_write() -> None:
    with raises(OutputError, path="/proc/ddsm/out.txt") as caught:
        write_text("/proc/ddsm/out.txt", "text")  # even the superuser may not
    assert caught.value.errno is not None


def test_an_error_about_another_file_keeps_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source.png"), atomic_path(tmp_path / "out.png"):
        (tmp_path / "source.png").read_bytes()


def test_a_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data"
    with atomic_folder(target) as temporary:
        (temporary / "a.txt").write_text("new")
        assert not target.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "deep",
        "deep/data",
        "deep/data/a.txt",
    ]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_leaves_no_folder(tmp_path: Path, failure: BaseException | type[BaseException]) -> None:
    expected = OutputError if isinstance(failure, OSError) else failure
    with pytest.raises(expected), atomic_folder(tmp_path / "data") as temporary:
        (temporary / "a.txt").write_text("half")
        raise failure
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_existing_folder_is_never_replaced(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "data"
    {"file": target.touch, "folder": target.mkdir, "dangling link": lambda: target.symlink_to("nowhere")}[kind]()
    with raises(OutputError, path="data", errno=errno.EEXIST), atomic_folder(target):
        pytest.fail("the block ran")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@given(FINITE_JSON)
def test_json_comes_back(data: object) -> None:
    text = to_json(data)
    assert text.endswith("\n")
    assert json.loads(text) == data


def test_json_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"iou": (math.nan, 0.5), "best": {"straße": -math.inf}})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"iou": [None, 0.5], "best": {"straße": None}}
    assert "straße" in text
    assert '\n  "iou"' in text


def test_what_json_cannot_hold_touches_no_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"miou": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"miou": {1, 2}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"miou": 0.5}


@pytest.mark.parametrize("age", [0, 60])
def test_a_hash_follows_the_content(tmp_path: Path, age: int) -> None:
    """Of the same length and, for an old file, at another time."""
    path = tmp_path / "file"
    for number, content in enumerate((b"one", b"two")):
        path.write_bytes(content)
        if age:
            os.utime(path, (1_000_000 + number, 1_000_000 + number))
        for _ in range(2):
            assert sha256_of(path) == hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once_whatever_path_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the links in the Hub's cache do."""
    file = tmp_path / "blob"
    (tmp_path / "snapshot").mkdir()
    file.write_bytes(b"weights")
    os.utime(file, (1_000_000, 1_000_000))
    opened, open_file = [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args: opened.append(self) or open_file(self, *args))
    for path in (file, tmp_path / "snapshot" / ".." / "blob"):
        assert sha256_of(path) == hashlib.sha256(b"weights").hexdigest()
    assert len(opened) == 1
