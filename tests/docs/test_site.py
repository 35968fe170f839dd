"""The pages as a site: the strict build, as `make docs` runs it, says nothing and leaves no link open."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import ddsm_zoo
from tests.support.pages import PAGES, ROOT


class Links(HTMLParser):
    """The headings that a page has, where it leads, and what it loads while it is shown."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.targets.add(given["href"])
        elif tag in ("img", "script", "link", "iframe"):
            self.loaded |= {given[name] for name in ("src", "href") if name in given}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stderr.splitlines() if line} == {"INFO"}, done.stderr
    return folder


# Material announces at every start when its development ends, which is nothing that a page could mend
QUIET = {"NO_MKDOCS_2_WARNING": "1"}


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {path: Links(path) for path in site.rglob("*.html")}


def test_every_page_is_there(site: Path) -> None:
    for page in PAGES:
        if page != "README.md":
            target = page.removeprefix("docs/").replace("README.md", "index.md")
            assert (site / target).with_suffix(".html").is_file(), page


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Links]) -> None:
    followed = 0
    for path, links in pages.items():
        if path.name == "404.html":  # it may be shown in place of any page, and so has links from the site's root
            continue
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.exists(), f"{path.relative_to(site)}: {target}"
            if parts.fragment and there in pages:
                assert parts.fragment in pages[there].ids, f"{path.relative_to(site)}: {target}"
            followed += 1
    assert followed > 500


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    for path, links in pages.items():
        for address in links.loaded:
            assert not urlsplit(address).netloc, f"{path.relative_to(site)}: {address}"
    assert "fonts.googleapis" not in (site / "index.html").read_text(encoding="utf-8")


def test_the_reference_has_every_public_name(pages: dict[Path, Links], site: Path) -> None:
    names = {f"ddsm_zoo.{name}" for name in ddsm_zoo.__all__ if name != "__version__"}
    assert names <= pages[site / "reference.html"].ids
