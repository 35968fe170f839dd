"""Hook of the build: what the metadata says with the address of the repository, which pyproject.toml holds once.

The README's links and pictures are relative, so that they work in a checkout and in a fork. The page of the package
has no files beside it, so its copy of the README gets absolute ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# What follows one of these is a link in Markdown or HTML, unless it has a scheme or leads to a heading of the page
_RELATIVE = r"""(?![a-zA-Z][\w+.-]*:|[#/])"""
_IMAGE = re.compile(rf"""(!\[[^\]]*\]\(|\b(?:src|srcset)=["'])\s*{_RELATIVE}""")
_LINK = re.compile(rf"""(\]\(|\bhref=["']|^\[[^\]]+\]:[ ]*){_RELATIVE}""", re.MULTILINE)


class MetadataHook(MetadataHookInterface):
    """Set the fields ``readme`` and ``urls`` of the project."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the fields to the project's table of pyproject.toml."""
        repository = self.config["repository"].rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository)}
        metadata["urls"] = {
            "Homepage": repository,
            "Documentation": f"{repository}/blob/main/docs/index.md",
            "Changelog": f"{repository}/blob/main/CHANGELOG.md",
            "Issues": f"{repository}/issues",
        }


def absolute(text: str, repository: str) -> str:
    """Make links and pictures of a page at the root of the repository absolute."""
    text = _IMAGE.sub(rf"\g<1>{repository}/raw/main/", text)
    return _LINK.sub(rf"\g<1>{repository}/blob/main/", text)
