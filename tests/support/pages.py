"""The pages that users read, and the blocks of code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}

_NOT_RUN = re.compile(r"\s*<!-- not run: (?P<reason>.+) -->\s*")
_OPENING = re.compile(r"(?P<indent> *)```(?P<language>\w*)\s*")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: ``line`` is that of its fence, ``not_run`` the reason that the page gives for not running it."""

    page: str
    line: int
    language: str
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The blocks of a page, from top to bottom."""
    lines = PAGES[page].read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    opened: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines):
        if opened is None:
            match = _OPENING.fullmatch(line)
            opened = None if match is None else (number, match)
        elif line.strip() == "```":
            start, match = opened
            indent = len(match["indent"])
            note = _NOT_RUN.fullmatch(lines[start - 1])
            found.append(
                Block(
                    page=page,
                    line=start + 1,
                    language=match["language"],
                    code="\n".join(each[indent:] for each in lines[start + 1 : number]) + "\n",
                    not_run=note["reason"] if note else None,
                )
            )
            opened = None
    assert opened is None, f"{page} ends inside a block"
    return found
