"""What `mkdocs build` does besides: links that leave docs/ work on the site as they do in the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# A link to a file of the repository: not to another site, nor to a heading of the same page
LINK = re.compile(r"\]\((?![a-z]+:|#)(?P<path>[^)#\s]+)(?P<heading>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files beside docs/ that pages link to into the site, under their paths in the repository."""
    for path in (ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "ddsm_zoo" / "recipes").iterdir())):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let each link lead to where the site has what it leads to in the repository."""
    source = Path(page.file.abs_src_path or "").relative_to(ROOT).as_posix()

    def site_link(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"])).removeprefix("docs/")
        there = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        return f"]({there}{link['heading'] or ''})"

    return LINK.sub(site_link, markdown)
