"""Facts of the images of a split that change what is read without a trace in the pixels."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ddsm_zoo.data.facts import ImageFacts, describe_dark, image_facts
from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.problems import Problem


class ImageCheck:
    """Check of the images of one split, added one by one."""

    def __init__(self, split: str, bits: int | None, *, label_file: bool) -> None:
        self.split, self.bits, self.label_file = split, bits, label_file
        self._facts: dict[str, ImageFacts] = {}

    def add(self, file: str, path: Path) -> None:
        """Add the image ``path``, which messages call ``file``. One that cannot be opened is left to its reader."""
        with suppress(ImageError, OSError):
            self._facts[file] = image_facts(path, bits=self.bits)

    def rotated(self, file: str) -> bool:
        """Return True if EXIF metadata rotates the image."""
        return file in self._facts and self._facts[file].rotated

    def problems(self) -> list[Problem]:
        """List the problems of the images, all of them warnings."""
        rotated = [file for file, facts in self._facts.items() if facts.keeps_size]
        pages = {file: facts.pages for file, facts in self._facts.items() if facts.pages > 1}
        largest = {file: facts.largest for file, facts in self._facts.items() if facts.largest is not None}
        dark = describe_dark(largest)
        return [
            self._problem(
                "exif-rotated",
                "an EXIF rotation that keeps the size of",
                rotated,
                "which are read upright: their masks must be upright too, or the tag removed",
            ),
            self._problem(
                "dark-images",
                f"{dark} in",
                list(largest) if dark else [],
                "which are read as nearly black"
                + (' unless labels.json says "bits"' if self.label_file else ": convert them to 8 bits"),
            ),
            self._problem(
                "more-pages",
                "more than one page or frame in",
                [f"{file} ({count})" for file, count in pages.items()],
                "of which the first is read",
            ),
        ]

    def _problem(self, kind: str, what: str, files: list[str], advice: str) -> Problem:
        return Problem.of(
            files,
            kind=kind,
            severity="warning",
            split=self.split,
            what=what,
            noun="images",
            advice=advice,
            total=len(self._facts),
        )
