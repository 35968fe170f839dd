"""Problems of a data set, worded the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SHOWN = 3  # file names in the message; nobody reads a longer line


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem of a split, with all the files that have it.

    Its text is one line: ``what`` in ``count`` of ``total`` ``noun``, the ``advice``, and the first ``examples``, paths
    below the root of the data set. An error stops reading, training or scoring on the data. A warning may be intended.
    A note says what was guessed. Without a ``total`` there is no count.
    """

    kind: str
    severity: Severity = "error"
    split: str
    what: str
    noun: str = "masks"
    advice: str = ""
    count: int = 0
    total: int = 0
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, examples: Sequence[str], **facts: Any) -> Problem:
        """Build a problem that all these examples have: their number and the first of them."""
        return cls(count=len(examples), examples=tuple(examples[:SHOWN]), **facts)

    def __str__(self) -> str:
        text = f"{self.split}: {self.what}"
        if self.total:
            text += f" {self.count} of {self.total} {self.noun}"
        if self.advice:
            text += f", {self.advice}"
        if self.examples:
            text += f": {', '.join(self.examples)}"
            if self.count > len(self.examples):
                text += f" and {self.count - len(self.examples)} more"
        return text
