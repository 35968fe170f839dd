"""Video sequences, derived from the file names of their frames."""

from __future__ import annotations

import re

# CamVid's 0016E5_07959 and 0006R0_f02040, Cityscapes' munster_000012_000019
_FRAME = re.compile(r"(?P<sequence>.+)_[A-Za-z]?[0-9]+")


def sequence_of(name: str) -> str | None:
    """Return the sequence of the frame ``name``: its part before the last underscore, if a frame number follows.

    A letter may precede the number. The sequence is ``0016E5`` for CamVid's ``0016E5_07959`` and ``munster_000012`` for
    Cityscapes' ``munster_000012_000019``. Names of another form give None.
    """
    match = _FRAME.fullmatch(name)
    return match["sequence"] if match else None
