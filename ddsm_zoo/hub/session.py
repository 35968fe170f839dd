"""Settings of the Hub client's requests: endpoint, token and a limit on stalling."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import hf_raise_for_status

from ddsm_zoo.errors import ArgumentError

# Seconds that a server may stall, or the client may repeat the same request
PATIENCE = 20.0

_TOKEN = re.compile(r"[!-~]+")
_PLACE = re.compile(r'(W/)?"?/|.*(\.\.|\\)')


def endpoint() -> str:
    """Return the address of the Hub: the current HF_ENDPOINT, which the client reads only on import, or its own."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def asked() -> str:
    """Return the end of an error of the network, which names the address that was asked without its secrets."""
    address = endpoint()
    with contextlib.suppress(ValueError):  # brackets without an end, or a port that is no number
        parts = urllib.parse.urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.path:
            return f" (asked {parts.scheme}://{host}{parts.path})"
    return " (asked HF_ENDPOINT, which is no address, expected one like https://HOST)"


def check_token(token: str | None) -> None:
    """Raise ValueError, without repeating the token, for one that cannot be sent. None means no token."""
    if token is not None and not _TOKEN.fullmatch(token):
        raise ArgumentError(
            "the token is empty or has characters that no token has, expected one as the Hub shows it: look at "
            "HF_TOKEN, or log in again with `hf auth login`",
            kind="hub-access",
            name="token",
        )


@contextlib.contextmanager
def impatience() -> Iterator[None]:
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
            raise OSError("the server names a file outside the cache; do not use this server, and check HF_ENDPOINT")

    hooks["request"].append(bound)
    hooks["response"].append(refuse)
    try:
        yield
    finally:
        hooks["request"].remove(bound)
        hooks["response"].remove(refuse)
