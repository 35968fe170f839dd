"""Errors by their facts, so that a test does not hold the wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.tiny_weights import one_line

ErrorT = TypeVar("ErrorT", bound=BaseException)


@contextmanager
def raises(error: type[ErrorT], **expected: Any) -> Iterator[pytest.ExceptionInfo[ErrorT]]:
    """Expect an error of one line with these facts: kind, name, path, got or expected, and errno of failed writes.

    A relative path is compared with the end of the error's path.
    """
    with pytest.raises(error) as caught:
        yield caught
    one_line(caught)
    found = {fact: getattr(caught.value, fact, None) for fact in expected}
    if "path" in expected:
        wanted, got = Path(expected["path"]), Path(found["path"] or "")
        expected["path"] = wanted
        found["path"] = got if wanted.is_absolute() else Path(*got.parts[-len(wanted.parts) :])
    assert found == expected, str(caught.value)
