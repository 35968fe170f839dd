"""Upload of a model's files to the Hub in one commit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

import huggingface_hub
from huggingface_hub import errors

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.hub.address import parse_repository
from ddsm_zoo.hub.faults import HubError, client_errors
from ddsm_zoo.hub.session import asked, check_token, endpoint, impatience

logger = logging.getLogger(__name__)


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
    api = huggingface_hub.HfApi(endpoint=endpoint(), token=token)
    logger.info("publishing %d bytes to %s", sum(map(len, files.values())), where)
    with client_errors(f"publish {where}", asked()), impatience(), _repository(api, repository, private):
        # the client does not change an existing repository
        if private is not None and api.model_info(repository).private is not private:
            raise HubError(
                f"hf-hub:{repository} exists and is {'public' if private else 'private'}, got private={private}: "
                "nothing is published; change its settings on the Hub, choose another name, or leave private out"
                f"{asked()}",
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
    parse_repository(where)
    if create_pr and revision not in (None, "main"):
        raise ArgumentError(
            f"a pull request goes to main, got revision={revision!r} beside create_pr; drop one of them",
            kind="options",
            name="revision",
            got=revision,
            expected="main",
        )
    check_token(token)
    if token is None:
        with client_errors(f"publish hf-hub:{where}"):
            check_token(known := huggingface_hub.get_token())
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
                logger.warning(
                    "hf-hub:%s was created and is empty: delete it on the Hub, or push again%s", repository, asked()
                )
        raise
