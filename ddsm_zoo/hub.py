"""From a URI to verified local files, and between those files and a state dict. Nothing read here is executed.

The URIs: ``bundled:FILE`` (inside the package), ``hf-hub:org/repo[@revision]``, ``local-dir:FOLDER``, ``file:PATH``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub
import safetensors
import safetensors.torch
import torch
from huggingface_hub import errors

# httpx in version 1 of the client and httpx2 in version 2: the base of its errors names the right one
from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]  # not in its __all__
from torch import Tensor

from ddsm_zoo.files import atomic_path

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
BUNDLED = Path(__file__).parent / "weights"
MAX_HEADER_BYTES = 16 * 2**20
SCHEMES = ("bundled", "hf-hub", "local-dir", "file")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


class HubError(LookupError):
    """Files that could not be fetched: names the URI, what went wrong and what to do."""


class CheckpointError(ValueError):
    """Weights that are damaged, unsafe or of another model; one line that names what is wrong."""


def fetch(uri: str, *names: str, cache_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Local paths of the files ``names`` at ``uri``; all files of a Hub repository come from one commit.

    ``bundled:`` and ``file:`` are single files, whatever ``names`` has. ``cache_dir`` is the Hub's cache, by
    default the client's own (HF_HOME); HF_ENDPOINT, HF_HUB_OFFLINE and the client's token are honoured. Raises
    HubError, FileNotFoundError for local files, and ValueError for a URI that is none.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in SCHEMES or not rest or "\0" in rest:
        expected = ", ".join(f"{known}:" for known in SCHEMES)
        raise ValueError(f"{uri[:120]!r} names no weights, expected an address after one of {expected}")
    if scheme == "bundled":
        return [_bundled(rest)]
    if scheme == "file":
        return [find_weights(rest)]
    if scheme == "local-dir":
        return _from_folder(Path(rest).expanduser(), names)
    return _from_hub(rest, names, None if cache_dir is None else Path(cache_dir).expanduser())


@contextlib.contextmanager
def client_errors(what: str) -> Iterator[None]:
    """Turn every failure of the Hub's client inside the block into a HubError about ``what``."""
    try:
        yield
    except (ClientError, errors.EntryNotFoundError, OSError) as error:
        raise HubError(f"cannot fetch {what}: {_explain(error)}") from error


def is_uri(name: str) -> bool:
    """Whether a model name is an address of a whole model, config and weights, rather than a name in the zoo."""
    return name.startswith(("hf-hub:", "local-dir:"))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def verify(path: Path, expected: str | None) -> str:
    """The file's SHA-256. Raises CheckpointError when it is not the expected one, where one is expected."""
    found = sha256_of(path)
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{path} has sha256 {found[:16]}..., expected {expected[:16]}...: it is damaged or was changed; "
            "delete it and fetch it again, or correct sha256 in its config.json if the change is yours"
        )
    return found


def find_weights(path: str | os.PathLike[str]) -> Path:
    """The safetensors file that ``path`` means: itself, or the one in a saved model's or a training run's folder.

    Raises FileNotFoundError.
    """
    path = Path(path).expanduser()
    candidates = (path, path / WEIGHTS_FILE, path / "best" / WEIGHTS_FILE)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no weights at {path}: expected a .safetensors file or a folder with {WEIGHTS_FILE} or best/{WEIGHTS_FILE}"
        )
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError for anything else, pickles above all."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a safetensors file")
    _check_header(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is damaged, expected a whole safetensors file: {reason}") from error
    strange = [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in DTYPES]
    if strange:
        raise CheckpointError(f"{path} has tensors of another type than weights have: {abbreviate(strange)}")
    return tensors


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file with these tensors, always the same for the same tensors."""
    return safetensors.torch.save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def write_files(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write each file of a model into ``folder``, each of them whole or not at all, in the given order.

    Raises OutputError.
    """
    for name, content in files.items():
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_bytes(content)


def abbreviate(items: list[str]) -> str:
    """At most three of the items and the number of the others."""
    rest = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + rest


def _check_header(path: Path) -> None:
    """Refuse a file that cannot be safetensors before anything is allocated for it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or length > MAX_HEADER_BYTES:
        if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5"):
            raise CheckpointError(f"{path} is a pickle, which can run code and is never opened; expected safetensors")
        raise CheckpointError(
            f"{path} ({size} bytes) is not a safetensors file; expected one that save_pretrained wrote"
        )
    if length > size - 8:
        raise CheckpointError(f"{path} is cut short: {size} bytes, expected more than {length + 8}; fetch it again")


def _bundled(name: str) -> Path:
    if not _FILE.fullmatch(name):
        raise ValueError(f"bundled:{name[:120]!r} is no plain file name")
    path = BUNDLED / name
    if not path.is_file():
        raise HubError(f"this installation holds no file weights/{name}")
    return path


def _from_folder(folder: Path, names: tuple[str, ...]) -> list[Path]:
    if not (folder / CONFIG_FILE).exists() and (folder / "best" / CONFIG_FILE).exists():
        folder = folder / "best"
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"no {missing[0]} in {folder}, expected a folder written by save_pretrained")
    return [folder / name for name in names]


def _from_hub(rest: str, names: tuple[str, ...], cache_dir: Path | None) -> list[Path]:
    repository, _, revision = rest.partition("@")
    revision = revision or "main"
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise ValueError(f"hf-hub:{rest[:120]!r} names no repository, expected hf-hub:organisation/name[@revision]")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"hf-hub:{rest[:120]!r} has no valid revision, expected a branch, tag or commit after the @")
    paths: list[Path] = []
    for name in names:
        path = _download(repository, revision, name, cache_dir)
        paths.append(path)
        # the folder in the cache is named after the commit: the other files must come from the same one
        revision = path.parent.name
    return paths


def _download(repository: str, revision: str, name: str, cache_dir: Path | None) -> Path:
    """One file of a repository, through the client's cache.

    The client alone retries for 23 s when the server is down. One request ahead tells at once whether it answers;
    if not, the copy in the cache has to do.
    """
    where = f"hf-hub:{repository}@{revision}/{name}"
    endpoint = os.environ.get("HF_ENDPOINT") or None
    cached = huggingface_hub.try_to_load_from_cache(repository, name, cache_dir=cache_dir, revision=revision)
    if isinstance(cached, str) and revision == Path(cached).parent.name:
        return _checked(Path(cached), where)
    logger.info("looking for %s", where)
    with client_errors(where):
        try:
            url = huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=endpoint)
            huggingface_hub.get_hf_file_metadata(url, endpoint=endpoint)
        except (ClientError, OSError) as error:
            gone = isinstance(error, (errors.RevisionNotFoundError, errors.EntryNotFoundError))
            if gone or not isinstance(cached, str):
                raise
            logger.warning("%s: %s; using the copy in the cache", where, _explain(error))
            return _checked(Path(cached), where)
        path = huggingface_hub.hf_hub_download(
            repository, name, revision=revision, cache_dir=cache_dir, endpoint=endpoint
        )
    return _checked(Path(path), where)


def _checked(path: Path, where: str) -> Path:
    """The downloaded file, compared with the hash that the Hub gave for it; a damaged copy leaves the cache."""
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name) and sha256_of(blob) != blob.name:
        for damaged in (path, blob):
            damaged.unlink(missing_ok=True)
        raise HubError(f"{where} arrived damaged: its sha256 is not the one the Hub announced; fetch it again")
    return path


def _explain(error: Exception) -> str:
    """One line for a failed request: what happened and what to do. It repeats no address, header or token."""
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    explanations: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            "the repository is gated; accept its terms on the Hub, then log in with `hf auth login`",
        ),
        (errors.RepositoryNotFoundError, "no such repository, or a private one; check the name or run `hf auth login`"),
        (errors.RevisionNotFoundError, "the repository has no such revision; check what follows the @"),
        (errors.RemoteEntryNotFoundError, "the repository has no such file; is it a ddsm-zoo model?"),
        (
            errors.OfflineModeIsEnabled,
            "HF_HUB_OFFLINE is set and the file is not in the cache; unset it or fetch it first",
        ),
        (
            errors.LocalEntryNotFoundError,
            "the Hub cannot be reached and the file is not in the cache; check the network",
        ),
    ]
    for kind, text in explanations:
        if isinstance(error, kind):
            return text
    if status in (401, 403):
        return f"the server refused access (HTTP {status}); check your token, or log in with `hf auth login`"
    if status is not None:
        return f"the server answered HTTP {status}; try again later"
    if isinstance(error, ClientError):
        return f"the Hub cannot be reached ({type(error).__name__}); check the network and HF_ENDPOINT, then try again"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return " ".join(str(error).split())[:200]
