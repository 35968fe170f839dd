"""Download of verified files from a URI. Nothing read here is executed."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import hf_raise_for_status

from ddsm_zoo.errors import ArgumentError, MissingFileError
from ddsm_zoo.hub.address import SCHEMES, WEB_ADDRESS, parse_repository, public_uri
from ddsm_zoo.hub.faults import ClientError, HubError, client_errors, explain
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE, find_weights
from ddsm_zoo.hub.session import asked, check_token, endpoint, impatience
from ddsm_zoo.utils.files import LocalFile, atomic_path, sha256_of, write_text

BUNDLED = Path(__file__).parents[1] / "weights"

_FILE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Access:
    """Settings of the downloads from the Hub, see `fetch`."""

    cache_dir: Path | None
    token: str | bool | None
    local_files_only: bool
    force_download: bool


def fetch(
    uri: str,
    *names: str,
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> list[LocalFile]:
    """Download the files ``names`` at ``uri`` and return them as local files, with the hashes that were verified.

    All files of a Hub repository come from one commit. ``bundled:``, ``file:`` and ``https:`` are single files and
    ignore ``names``. HF_ENDPOINT, HF_HUB_OFFLINE and the client's token are honored.

    Args:
        uri: Location of the files.
        names: Names of the files.
        sha256: Hash of an ``https:`` file, required there. The cache stores the file under it.
        cache_dir: The Hub's cache, by default the client's own (HF_HOME).
        token: Token of the Hub. Unless given, the client's own. False sends none.
        local_files_only: Take the files from the cache and ask no server.
        force_download: Download the files even if the cache has them.

    Raises:
        HubError: The download failed.
        FileNotFoundError: A local file is missing.
        ValueError: ``uri`` is not a valid URI, or options exclude each other.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in SCHEMES or not rest or "\0" in rest:
        expected = ", ".join(f"{known}:" for known in SCHEMES)
        raise ArgumentError(
            f"{public_uri(uri)[:120]!r} names no weights, expected an address after one of {expected}",
            kind="address",
            name=public_uri(uri),
        )
    if local_files_only and force_download:
        raise ArgumentError(
            "got both local_files_only and force_download, expected one of them", kind="options", name="force_download"
        )
    access = _Access(
        cache_dir=None if cache_dir is None else Path(cache_dir).expanduser(),
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    if scheme == "bundled":
        return [LocalFile(path=_bundled(rest))]
    if scheme == "file":
        return [LocalFile(path=find_weights(rest))]
    if scheme == "local-dir":
        return [LocalFile(path=path) for path in _from_folder(Path(rest).expanduser(), names)]
    if scheme == "https":
        return [_from_web(uri, access, sha256)]
    return _from_hub(rest, names, access)


def _bundled(name: str) -> Path:
    if not _FILE.fullmatch(name):
        raise ArgumentError(f"bundled:{name[:120]!r} is no plain file name", kind="address", name=f"bundled:{name}")
    path = BUNDLED / name
    if not path.is_file():
        raise HubError(f"this installation holds no file weights/{name}", kind="missing-file", name=name)
    return path


def _from_folder(folder: Path, names: tuple[str, ...]) -> list[Path]:
    if not (folder / CONFIG_FILE).exists() and (folder / "best" / CONFIG_FILE).exists():
        folder = folder / "best"
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        what = f"no {missing[0]} in {folder}" if folder.is_dir() else f"the folder {folder} does not exist"
        raise MissingFileError(
            f"{what}, expected a folder that `ddsm-zoo train` or save_pretrained wrote", path=folder / missing[0]
        )
    return [folder / name for name in names]


def _from_web(url: str, access: _Access, sha256: str | None) -> LocalFile:
    """Download one file from any server. Its hash makes it trustworthy, and is its name in the cache."""
    where = public_uri(url)
    if not WEB_ADDRESS.fullmatch(where):
        raise ArgumentError(
            f"{where[:120]!r} is no address of a file, expected https://HOST/FILE", kind="address", name=where
        )
    if sha256 is None or not _SHA256.fullmatch(sha256):
        raise ArgumentError(
            f"{where} has no sha256, expected its 64 hexadecimal digits: no other server is trusted",
            kind="address",
            name=where,
        )
    with client_errors(f"fetch {where}"):
        assets = None if access.cache_dir is None else access.cache_dir / "assets"
        path = huggingface_hub.cached_assets_path("ddsm-zoo", "weights", assets_dir=assets) / f"{sha256}.safetensors"
        if path.is_file() and not access.force_download:
            return LocalFile(path=path)  # it may have changed since
        if access.local_files_only:
            raise _offline(where)
        logger.info("fetching %s", where)
        with huggingface_hub.get_session().stream("GET", url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            with atomic_path(path) as temporary:
                with temporary.open("wb") as file:
                    for block in response.iter_bytes(2**20):
                        file.write(block)
                if sha256_of(temporary) != sha256:
                    raise HubError(
                        f"{where} is another file than expected: its sha256 is not {sha256[:16]}...",
                        kind="hub-hash",
                        name=where,
                        expected=sha256,
                    )
    return LocalFile(path=path, sha256=sha256)


def _offline(where: str) -> HubError:
    return HubError(
        f"{where} is not in the cache, and local_files_only is set; fetch it first without it",
        kind="hub-offline",
        name=where,
    )


def _from_hub(rest: str, names: tuple[str, ...], access: _Access) -> list[LocalFile]:
    repository, revision = parse_repository(rest)
    files: list[LocalFile] = []
    for name in names:
        # the folder in the cache is named after the commit: the other files must come from the same one
        commit = files[0].path.parent.name if files else revision
        files.append(_download(repository, commit, name, access))
    _note_commit(files[0].path.parent, revision)
    return files


def _download(repository: str, revision: str, name: str, access: _Access) -> LocalFile:
    """Download one file of a repository through the client's cache. Without a server, fall back to the cached copy."""
    where = f"hf-hub:{repository}@{revision}/{name}"
    cached = huggingface_hub.try_to_load_from_cache(repository, name, cache_dir=access.cache_dir, revision=revision)
    pinned = isinstance(cached, str) and revision == Path(cached).parent.name
    if isinstance(cached, str) and (access.local_files_only or (pinned and not access.force_download)):
        return _checked(Path(cached), where)
    if access.local_files_only:
        raise _offline(where)
    logger.info("looking for %s", where)
    with client_errors(f"fetch {where}", asked()):
        try:
            path = _newest(repository, revision, name, access)
        except (ClientError, OSError) as error:
            gone = isinstance(error, (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError))
            if gone or access.force_download or not isinstance(cached, str):
                raise
            if not isinstance(error, errors.OfflineModeIsEnabled):  # offline mode is the user's choice
                logger.warning("%s: %s%s; using the copy in the cache", where, explain(error)[1], asked())
            path = Path(cached)
    return _checked(path, where, asked())


def _newest(repository: str, revision: str, name: str, access: _Access) -> Path:
    """Ask the server for the current commit of ``revision`` and return the file in the cache."""
    check_token(access.token if isinstance(access.token, str) else huggingface_hub.get_token())
    host = endpoint()
    url = huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=host)
    with impatience():
        # a separate request fails at once, where the download would retry for 23 s
        found = huggingface_hub.get_hf_file_metadata(
            url, token=access.token, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=host
        )
        if not _SHA1.fullmatch(commit := found.commit_hash or ""):
            # the download would accept any cached copy of main
            raise OSError(
                "the server that answers is not a Hub; check the network, which may want a login, and HF_ENDPOINT"
            )
        path = huggingface_hub.hf_hub_download(
            repository,
            name,
            revision=commit,
            cache_dir=access.cache_dir,
            token=access.token,
            force_download=access.force_download,
            endpoint=host,
        )
    return Path(path)


def _note_commit(folder: Path, revision: str) -> None:
    """Record in the cache, as the client does, the last commit of a branch or tag, for use without a server.

    A commit with fewer files than the one before is not recorded: the rest may never arrive.
    """
    reference = folder.parents[1] / "refs" / revision
    with contextlib.suppress(OSError, ValueError):  # a read-only cache can still be read
        older = folder.parent / (reference.read_text() if reference.is_file() else "none")
        lost = any((older / name).exists() and not (folder / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE))
        if folder.name not in (revision, older.name) and not lost:
            write_text(reference, folder.name)


def _checked(path: Path, where: str, origin: str = "") -> LocalFile:
    """Compare the downloaded file with the hash that the Hub gave. A damaged copy is removed from the cache."""
    blob = path.resolve()
    try:
        if _has_its_hash(blob):
            return LocalFile(path=path, sha256=blob.name if _SHA256.fullmatch(blob.name) else None)
        for damaged in (path, blob):
            damaged.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(
            f"the copy of {where} in the cache is damaged or closed to you ({error.strerror}: {blob}); "
            "delete that file, or choose another folder with cache_dir or HF_HOME",
            kind="hub-cache",
            name=where,
            path=blob,
        ) from error
    raise HubError(
        f"{where} arrived damaged: its hash is not the one the Hub announced; fetch it again{origin}",
        kind="hub-hash",
        name=where,
    )


def _has_its_hash(blob: Path) -> bool:
    """Return True if a cached file matches its name: its SHA-256 for large files, git's hash for small ones."""
    if _SHA256.fullmatch(blob.name):
        return sha256_of(blob) == blob.name
    if _SHA1.fullmatch(blob.name):
        content = blob.read_bytes()
        # git hashes a header too; plain mirrors of the Hub may not
        candidates = (f"blob {len(content)}\0".encode() + content, content)
        return blob.name in [hashlib.sha1(data, usedforsecurity=False).hexdigest() for data in candidates]
    return True
