"""Sequences of video frames, by the names of their files."""

from __future__ import annotations

import re

# CamVid's 0016E5_07959 and 0006R0_f02040, Cityscapes' munster_000012_000019
_FRAME = re.compile(r"(?P<sequence>.+)_[A-Za-z]?[0-9]+")


def sequence_of(name: str) -> str | None:
    """Sequence of the frame ``name``: all before its last underscore, if a number follows, with a letter or without.

    So it is ``0016E5`` for CamVid's ``0016E5_07959`` and ``munster_000012`` for Cityscapes' ``munster_000012_000019``.
    None for a name of another form.
    """
    match = _FRAME.fullmatch(name)
    return match["sequence"] if match else None
