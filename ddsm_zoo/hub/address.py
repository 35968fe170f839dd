"""URIs of models and weights: their schemes, their parts, and how they are shown.

The URIs: ``bundled:FILE`` (inside the package), ``hf-hub:org/repo[@revision]``, ``local-dir:FOLDER``, ``file:PATH`` and
``https://HOST/FILE``.
"""

from __future__ import annotations

import re

from ddsm_zoo.errors import ArgumentError

SCHEMES = ("bundled", "hf-hub", "local-dir", "file", "https")

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
WEB_ADDRESS = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+)(:\d{1,5})?/\S+")


def is_uri(name: str) -> bool:
    """Return True if a model name is the URI of a whole model, config and weights, rather than a name in the zoo."""
    return name.startswith(("hf-hub:", "local-dir:"))


def public_uri(uri: str) -> str:
    """Remove the user, password and query of a web URI, which may be secret. Of an invalid URI little remains."""
    if uri.startswith(tuple(f"{scheme}:" for scheme in SCHEMES if scheme != "https")) or not set("@?#") & set(uri):
        return uri
    public = re.split(r"[?#]", re.sub(r"//[^/?#]*@", "//", uri, count=1), maxsplit=1)[0]
    return public if WEB_ADDRESS.fullmatch(public) else re.split(r"[:@?#]", uri, maxsplit=1)[0] + "..."


def parse_repository(rest: str) -> tuple[str, str]:
    """Parse ``org/name[@revision]`` into repository and revision, main by default. Raises ValueError."""
    repository, _, revision = rest.partition("@")
    revision = revision or "main"
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise ArgumentError(
            f"got {rest[:120]!r} as a repository of the Hub, expected ORGANIZATION/NAME or ORGANIZATION/NAME@REVISION",
            kind="address",
            name=f"hf-hub:{rest}",
        )
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ArgumentError(
            f"got {rest[:120]!r} as a repository of the Hub, expected a branch, tag or commit after the @",
            kind="address",
            name=f"hf-hub:{rest}",
        )
    return repository, revision
