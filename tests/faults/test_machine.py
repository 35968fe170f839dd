"""Six faults of the machine: a cache that is read-only, and damaged too, a full disk, two processes, two killed."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.utils.files import CheckpointError
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.publishing import save_pretrained
from tests.support.hub_server import HubServer
from tests.support.refusals import URI, Files, final_files, refusal, weights_hash
from tests.support.tiny_weights import NAME, logits


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be created below the folder; the superuser, who could, is somebody else in the meantime."""
    user = os.geteuid()
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*")) if path.is_dir()}
    for path in modes:
        path.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_cache(server: HubServer, open_folder: Path, expected: Tensor) -> None:
    with read_only(open_folder):
        text = refusal(open_folder)
    assert "Permission denied" in text
    assert "choose another folder with cache_dir or HF_HOME" in text
    create_model(URI, pretrained=True, cache_dir=open_folder)
    with read_only(open_folder):
        assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=open_folder)), expected)


def test_a_damaged_file_in_a_read_only_cache(server: HubServer, open_folder: Path, expected: Tensor) -> None:
    create_model(URI, pretrained=True, cache_dir=open_folder)
    damaged = next(open_folder.rglob(WEIGHTS_FILE)).resolve()
    damaged.write_bytes(bytes(1000))
    with read_only(open_folder):
        text = refusal(open_folder)
    assert f"Permission denied: {damaged}); delete that file, or choose another folder" in text
    damaged.unlink()
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=open_folder)), expected)


def test_a_full_disk(server: HubServer, cache: Path, files: Files, expected: Tensor) -> None:
    """The system refuses to write on, as it does on a full disk, after a part of the weights."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(files[WEIGHTS_FILE]) // 2, limits[1]))
    try:
        text = refusal(cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free some space" in text
    assert WEIGHTS_FILE not in final_files(cache)
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)


FETCH = """
import sys
from ddsm_zoo.hub.download import fetch
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE

files = fetch(sys.argv[1], CONFIG_FILE, WEIGHTS_FILE, cache_dir=sys.argv[2])
print(*(file.path for file in files))
"""


def start_fetching(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCH, URI, str(cache)], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once(server: HubServer, cache: Path, files: Files) -> None:
    server.after_get = lambda path: time.sleep(0.1)
    processes = [start_fetching(cache) for _ in range(2)]
    found = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert found[0] == found[1]
    assert [Path(path).read_bytes() for path in found[0]] == [files[CONFIG_FILE], files[WEIGHTS_FILE]]


def test_killed_in_the_middle_of_a_download(server: HubServer, cache: Path, files: Files, expected: Tensor) -> None:
    server.faults["GET", weights_hash(files)] = "stall"
    process = start_fetching(cache)
    while f"/lfs/{weights_hash(files)}" not in server.paths("GET"):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.communicate()[0] == ""
    assert process.returncode == -signal.SIGKILL
    assert WEIGHTS_FILE not in final_files(cache)
    server.faults.clear()
    assert torch.equal(logits(create_model(URI, pretrained=True, cache_dir=cache)), expected)


# Saves a second model, over the first one or where nothing is, in processes that kill themselves at one place each:
# when a file is half written, or whole but not yet under its name.
SAVE = """
import os, signal, sys
import torch
torch.set_num_threads(1)  # a fork has none of the threads of its parent, and would wait for them
from pathlib import Path
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.publishing import save_pretrained

folder, name = Path(sys.argv[1]), sys.argv[2]
first, second = (create_model(name, num_classes=3) for _ in range(2))
save_pretrained(first, folder / "first")
save_pretrained(second, folder / "second")
for old, half in ((True, False), (False, True)):
    for place in range(3):
        target = folder / f"{old}-{half}-{place}"
        if old:
            save_pretrained(first, target)
        child = os.fork()
        if child == 0:
            places, write, replace = iter(range(3)), Path.write_bytes, os.replace
            def write_half(path, content):
                if half and next(places) == place:
                    write(path, content[: len(content) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                write(path, content)
            def replace_late(source, path):
                if not half and next(places) == place:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, path)
            Path.write_bytes, os.replace = write_half, replace_late
            save_pretrained(second, target)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SAVE, str(tmp_path), NAME], check=True)
    first, second = (create_model(f"local-dir:{tmp_path / name}", pretrained=True) for name in ("first", "second"))
    contents = {path.read_bytes() for name in ("first", "second") for path in (tmp_path / name).iterdir()}
    folders = [path for path in tmp_path.iterdir() if path.name not in ("first", "second")]
    assert len(folders) == 6
    for folder in folders:
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
        assert {path.read_bytes() for path in visible} <= contents
        try:
            loaded, refused = logits(create_model(f"local-dir:{folder}", pretrained=True)), ""
        except (CheckpointError, FileNotFoundError) as error:
            loaded, refused = None, str(error)
        assert "save" in refused if loaded is None else any(torch.equal(loaded, logits(old)) for old in (first, second))
        save_pretrained(second, folder)
        assert torch.equal(logits(create_model(f"local-dir:{folder}", pretrained=True)), logits(second))
