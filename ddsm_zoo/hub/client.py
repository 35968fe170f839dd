"""Download of verified files from a URI, and upload to the Hub. Nothing read here is executed.

The URIs: ``bundled:FILE`` (inside the package), ``hf-hub:org/repo[@revision]``, ``local-dir:FOLDER``, ``file:PATH`` and
``https://HOST/FILE``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

# The client uses httpx in version 1 and httpx2 in version 2: the base of its errors names the right one
from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]  # not in its __all__
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # nor in this

from ddsm_zoo.config import printable
from ddsm_zoo.errors import ArgumentError, MissingFileError, UserError
from ddsm_zoo.utils.files import LocalFile, atomic_path, sha256_of, write_text

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
BUNDLED = Path(__file__).parents[1] / "weights"
SCHEMES = ("bundled", "hf-hub", "local-dir", "file", "https")

# Seconds that a server may stall, or that the client may repeat the same request.
PATIENCE = 20.0

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_WEB = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+)(:\d{1,5})?/\S+")
_TOKEN = re.compile(r"[!-~]+")
_PLACE = re.compile(r'(W/)?"?/|.*(\.\.|\\)')
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


class HubError(UserError, LookupError):
    """Failed download or upload. The message names the URI, the cause and the fix."""

    kind = "hub"


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
        raise ArgumentError("got both local_files_only and force_download, expected one of them", kind="options")
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


def push(
    repository: str,
    files: Mapping[str, bytes],
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """Commit the files to ``org/name`` on the Hub and return the ``hf-hub:`` URI of that commit.

    HF_ENDPOINT and, unless ``token`` is given, the client's token are honored.

    Args:
        repository: ``org/name``, created if needed.
        files: Contents by file name.
        private: Visibility of the repository. An existing one must already have it.
        revision: Branch, created if needed.
        create_pr: Open a pull request on main instead of changing it.
        token: Token of the Hub.

    Raises:
        HubError: The upload failed.
        ValueError: A name is invalid.
    """
    where = check_push(repository, revision=revision, create_pr=create_pr, token=token)
    api = huggingface_hub.HfApi(endpoint=_endpoint(), token=token)
    logger.info("publishing %d bytes to %s", sum(map(len, files.values())), where)
    with client_errors(f"publish {where}"), _impatience(), _repository(api, repository, private):
        # the client does not change an existing repository
        if private is not None and api.model_info(repository).private is not private:
            raise HubError(
                f"hf-hub:{repository} exists and is {'public' if private else 'private'}, got private={private}: "
                "nothing is published; change its settings on the Hub, choose another name, or leave private out",
                kind="hub-exists",
                name=f"hf-hub:{repository}",
                got=private,
            )
        if revision not in (None, "main"):
            api.create_branch(repository, branch=revision, exist_ok=True)
        operations = [
            huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in files.items()
        ]
        commit = api.create_commit(
            repository, operations, commit_message="Upload the model", revision=revision, create_pr=create_pr
        )
    if commit.pr_url:
        logger.info("opened the pull request %s", commit.pr_url)
    return f"hf-hub:{repository}@{commit.oid}"


def check_push(
    repository: str, *, revision: str | None = None, create_pr: bool = False, token: str | None = None
) -> str:
    """Check everything about a `push` that needs no network, and return the URI it goes to.

    Raises:
        HubError: There is no token, or the client's own is none.
        ValueError: A name or ``token`` is invalid, or options exclude each other.
    """
    where = f"{repository}@{revision}" if revision else repository
    _parse_repository(where)
    if create_pr and revision not in (None, "main"):
        raise ArgumentError(
            f"a pull request goes to main, got revision={revision!r} beside create_pr; drop one of them",
            kind="options",
            name="revision",
            got=revision,
            expected="main",
        )
    _check_token(token)
    if token is None:
        with client_errors(f"publish hf-hub:{where}"):
            _check_token(known := huggingface_hub.get_token())
            if known is None:
                raise ArgumentError(
                    "there is no token: log in with `hf auth login`, or set HF_TOKEN", kind="hub-access", name="token"
                )
    return f"hf-hub:{where}"


@contextlib.contextmanager
def _repository(api: huggingface_hub.HfApi, repository: str, private: bool | None) -> Iterator[None]:
    """Create the repository if it does not exist. It is deleted again if the block fails before it holds anything."""
    try:
        api.create_repo(repository, private=private)
        created = True
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 409:  # it exists
            raise
        created = False
    try:
        yield
    except BaseException:
        if created:
            try:
                api.delete_repo(repository)
            except Exception:  # noqa: BLE001  # the first failure is the one to report
                logger.warning("hf-hub:%s was created and is empty: delete it on the Hub, or push again", repository)
        raise


@contextlib.contextmanager
def client_errors(task: str) -> Iterator[None]:
    """Turn every failure of the Hub client inside the block into a HubError: it cannot ``task``, and why.

    The client's own error is hidden: its text may repeat headers with a token, and whole URLs.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # noqa: BLE001  # an answer can make the client fail in any way, a bad address too
        kind, reason = _explain(error)
        raise HubError(f"cannot {task}: {reason}", kind=kind, name=task.partition(" ")[2]) from None


def is_uri(name: str) -> bool:
    """Return True if a model name is the URI of a whole model, config and weights, rather than a name in the zoo."""
    return name.startswith(("hf-hub:", "local-dir:"))


def public_uri(uri: str) -> str:
    """Remove the user, password and query of a web URI, which may be secret. Of an invalid URI little remains."""
    if uri.startswith(tuple(f"{scheme}:" for scheme in SCHEMES if scheme != "https")) or not set("@?#") & set(uri):
        return uri
    public = re.split(r"[?#]", re.sub(r"//[^/?#]*@", "//", uri, count=1), maxsplit=1)[0]
    return public if _WEB.fullmatch(public) else re.split(r"[:@?#]", uri, maxsplit=1)[0] + "..."


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
        raise MissingFileError(
            f"no {missing[0]} in {folder}, expected a folder written by save_pretrained", path=folder / missing[0]
        )
    return [folder / name for name in names]


def _from_web(url: str, access: _Access, sha256: str | None) -> LocalFile:
    """Download one file from any server. Its hash makes it trustworthy, and is its name in the cache."""
    where = public_uri(url)
    if not _WEB.fullmatch(where):
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
            raise HubError(
                f"{where} is not in the cache, and local_files_only is set; fetch it first without it",
                kind="hub-offline",
                name=where,
            )
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


def _from_hub(rest: str, names: tuple[str, ...], access: _Access) -> list[LocalFile]:
    repository, revision = _parse_repository(rest)
    files: list[LocalFile] = []
    for name in names:
        # the folder in the cache is named after the commit: the other files must come from the same one
        commit = files[0].path.parent.name if files else revision
        files.append(_download(repository, commit, name, access))
    _note_commit(files[0].path.parent, revision)
    return files


def _parse_repository(rest: str) -> tuple[str, str]:
    """Parse ``org/name[@revision]`` into repository and revision, main by default. Raises ValueError."""
    repository, _, revision = rest.partition("@")
    revision = revision or "main"
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise ArgumentError(
            f"hf-hub:{rest[:120]!r} names no repository, expected hf-hub:organization/name[@revision]",
            kind="address",
            name=f"hf-hub:{rest}",
        )
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ArgumentError(
            f"hf-hub:{rest[:120]!r} has no valid revision, expected a branch, tag or commit after the @",
            kind="address",
            name=f"hf-hub:{rest}",
        )
    return repository, revision


def _endpoint() -> str | None:
    """Return the current HF_ENDPOINT. The client reads it only once, on import."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _download(repository: str, revision: str, name: str, access: _Access) -> LocalFile:
    """Download one file of a repository through the client's cache. Without a server, fall back to the cached copy."""
    where = f"hf-hub:{repository}@{revision}/{name}"
    cached = huggingface_hub.try_to_load_from_cache(repository, name, cache_dir=access.cache_dir, revision=revision)
    pinned = isinstance(cached, str) and revision == Path(cached).parent.name
    if isinstance(cached, str) and (access.local_files_only or (pinned and not access.force_download)):
        return _checked(Path(cached), where)
    if access.local_files_only:
        raise HubError(
            f"{where} is not in the cache, and local_files_only is set; fetch it first without it",
            kind="hub-offline",
            name=where,
        )
    logger.info("looking for %s", where)
    with client_errors(f"fetch {where}"):
        try:
            path = _newest(repository, revision, name, access)
        except (ClientError, OSError) as error:
            gone = isinstance(error, (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError))
            if gone or access.force_download or not isinstance(cached, str):
                raise
            if not isinstance(error, errors.OfflineModeIsEnabled):  # offline mode is the user's choice
                logger.warning("%s: %s; using the copy in the cache", where, _explain(error)[1])
            path = Path(cached)
    return _checked(path, where)


def _newest(repository: str, revision: str, name: str, access: _Access) -> Path:
    """Ask the server for the current commit of ``revision`` and return the file in the cache."""
    _check_token(access.token if isinstance(access.token, str) else huggingface_hub.get_token())
    host = _endpoint()
    url = huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=host)
    with _impatience():
        # a separate request fails at once, where the download would retry for 23 s
        found = huggingface_hub.get_hf_file_metadata(
            url, token=access.token, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=host
        )
        if not _SHA1.fullmatch(commit := found.commit_hash or ""):
            # the download would accept any cached copy of main
            raise OSError("what answers there is no Hub; check the network, which may want a login, and HF_ENDPOINT")
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


@contextlib.contextmanager
def _impatience() -> Iterator[None]:
    """Cap how long the Hub client may stall, in this thread. Slow but moving downloads continue.

    Without the cap, it waits forever for the answer to some requests, as long as a busy server says, and six times for
    a stalled download.
    """
    hooks, thread = huggingface_hub.get_session().event_hooks, threading.get_ident()
    asked: dict[tuple[str, str, str | None], float] = {}

    def bound(request: Any) -> None:
        if threading.get_ident() != thread:
            return
        limits = request.extensions.get("timeout", {})
        limits = {kind: limits.get(kind) or PATIENCE for kind in ("connect", "read", "write", "pool")}
        # the Hub has four IP addresses, which are tried in turn
        request.extensions["timeout"] = {**limits, "connect": min(limits["connect"], PATIENCE / 4)}
        # the range is the missing part: another range means that the download has progressed
        wish = (request.method, str(request.url), request.headers.get("Range"))
        if time.monotonic() - asked.setdefault(wish, time.monotonic()) > PATIENCE:
            raise TimeoutError("the server stopped in the middle or keeps failing; check the network, then try again")

    def refuse(response: Any) -> None:
        if threading.get_ident() == thread and response.status_code in (408, 429):
            hf_raise_for_status(response)
        # the client uses them as file names
        if any(_PLACE.match(response.headers.get(name, "")) for name in ("ETag", "X-Linked-ETag")):
            raise OSError("the server means to write outside the cache; do not use it, and check HF_ENDPOINT")

    hooks["request"].append(bound)
    hooks["response"].append(refuse)
    try:
        yield
    finally:
        hooks["request"].remove(bound)
        hooks["response"].remove(refuse)


def _check_token(token: str | None) -> None:
    """Raise ValueError, without repeating the token, for one that cannot be sent. None means no token."""
    if token is not None and not _TOKEN.fullmatch(token):
        raise ArgumentError(
            "the token is empty or has characters that no token has, expected one as the Hub shows it: look at "
            "HF_TOKEN, or log in again with `hf auth login`",
            kind="hub-access",
            name="token",
        )


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


def _checked(path: Path, where: str) -> LocalFile:
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
        f"{where} arrived damaged: its hash is not the one the Hub announced; fetch it again",
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


def _explain(error: Exception) -> tuple[str, str]:
    """Return the kind of a failed request, and cause and fix in one line that repeats no URL, header or token."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return _explain(error.__cause__)
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    explanations: list[tuple[type[Exception], str, str]] = [
        (
            errors.GatedRepoError,
            "hub-access",
            "the repository is gated; accept its terms on the Hub, then run `hf auth login`",
        ),
        (
            errors.RepositoryNotFoundError,
            "hub-missing",
            "no such repository, or a private one; check the name or run `hf auth login`",
        ),
        (errors.RevisionNotFoundError, "hub-revision", "the repository has no such revision; check what follows the @"),
        (errors.RemoteEntryNotFoundError, "hub-missing", "the repository has no such file; is it a ddsm-zoo model?"),
        (
            errors.OfflineModeIsEnabled,
            "hub-offline",
            "HF_HUB_OFFLINE is set and the cache has no copy; unset it or fetch it first",
        ),
        (
            errors.LocalEntryNotFoundError,
            "hub-unreachable",
            "the Hub cannot be reached and the file not in the cache; check the network",
        ),
    ]
    for refused, kind, text in explanations:
        if isinstance(error, refused):
            return kind, text
    if status in (401, 403):
        return (
            "hub-access",
            f"the server refused access (HTTP {status}); check your token, or log in with `hf auth login`",
        )
    if status is not None:
        advice = "try again later" if status == 429 or status >= 500 else "check the address and what you asked for"
        return "hub", f"the server answered HTTP {status}; {advice}"
    if isinstance(error, ClientError):
        text = f"the Hub cannot be reached ({type(error).__name__}); check the network and HF_ENDPOINT, then try again"
        return "hub-unreachable", text
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return (
            "hub-cache",
            f"{error.strerror}{place}; free some space, or choose another folder with cache_dir or HF_HOME",
        )
    if isinstance(error, (OSError, RuntimeError, ValueError)):
        return getattr(error, "kind", "hub"), printable(" ".join(str(error).split()))
    return "hub", f"the Hub's client failed ({type(error).__name__}); check the address and HF_ENDPOINT, then try again"
