"""What can be wrong with a data set, said in the same words wherever it is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHOWN = 3  # file names of those concerned; a line with more is not read


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a split, for all the files that have it.

    Its text is one line: ``what`` in ``count`` of ``total`` ``noun``, the ``advice``, and the first ``examples``, paths
    below the root of the data set. An error stops the data from being read, learnt from or scored as it stands; a
    warning may be meant that way. Without a ``total`` nothing is counted.
    """

    kind: str
    severity: Literal["error", "warning"] = "error"
    split: str
    what: str
    noun: str = "masks"
    advice: str = ""
    count: int = 0
    total: int = 0
    examples: tuple[str, ...] = ()

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
