"""Failures of the Hub client as one-line errors that repeat no URL, header or token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub import errors

from ddsm_zoo.errors import UserError
from ddsm_zoo.utils.plain_data import printable

# The client uses httpx in version 1 and httpx2 in version 2: the base of its errors names the right one
ClientError: type[Exception] = errors.HTTPError


class HubError(UserError, LookupError):
    """Failed download or upload. The message names the URI, the cause and the fix."""

    kind = "hub"


@contextlib.contextmanager
def client_errors(task: str, ending: str = "") -> Iterator[None]:
    """Turn every failure of the Hub client inside the block into a HubError: it cannot ``task``, and why.

    The line ends with ``ending`` if a server was asked, see `session.asked`. The client's own error is hidden: its
    text may repeat headers with a token, and whole URLs.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # noqa: BLE001  # an answer can make the client fail in any way, a bad address too
        kind, reason = explain(error)
        local = isinstance(error, UserError) or kind in ("hub-cache", "hub-offline")
        raise HubError(
            f"cannot {task}: {reason}{'' if local else ending}", kind=kind, name=task.partition(" ")[2]
        ) from None


def explain(error: Exception) -> tuple[str, str]:
    """Return the kind of a failed request, and cause and fix in one line that repeats no URL, header or token."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__)
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
