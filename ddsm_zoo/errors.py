"""Errors that a user can cause: one line of text for people, and its facts as attributes for programs."""

from __future__ import annotations

import os
from typing import Any, TypeVar

ErrorT = TypeVar("ErrorT", bound="UserError")


class UserError(Exception):
    """Error that a user can cause, first base of every error class of this package.

    The text of the error names the value that came, what was expected and what to do. The attributes hold the
    same facts, and stay when the wording changes. Those that an error does not have are None.

    Attributes:
        kind: Word for the problem, a key of docs/troubleshooting.md, such as ``unknown-model``.
        name: Name of the argument, field, class or model that is wrong.
        path: File or folder.
        got: Value that came.
        expected: Value that was expected, or words for it.
    """

    kind: str = "value"
    name: str | None = None
    path: str | None = None
    got: Any = None
    expected: Any = None

    def __init__(
        self,
        text: object,
        *,
        kind: str | None = None,
        name: str | None = None,
        path: str | os.PathLike[str] | None = None,
        got: Any = None,
        expected: Any = None,
    ) -> None:
        super().__init__(text)
        facts = {"kind": kind, "name": name, "path": path and os.fspath(path), "got": got, "expected": expected}
        self.__dict__ |= {key: value for key, value in facts.items() if value is not None}

    @classmethod
    def of(
        cls: type[ErrorT],
        name: str,
        got: Any,
        expected: str,
        hint: str = "",
        *,
        kind: str | None = None,
        shown: str | None = None,
    ) -> ErrorT:
        """Create the error of a value: "NAME is GOT, expected EXPECTED; HINT".

        Args:
            name: Name of the argument or field.
            got: Its value.
            expected: Words for the values that it may have.
            hint: Words for what to do, if that does not follow from ``expected``.
            kind: Word for the problem, by default that of the class.
            shown: Text for the value, by default the value itself.
        """
        text = f"{name} is {got if shown is None else shown}, expected {expected}{hint and f'; {hint}'}"
        return cls(text, kind=kind, name=name, got=got, expected=expected)


class ArgumentError(UserError, ValueError):
    """Argument that a function cannot take."""

    kind = "argument"


class ArgumentTypeError(UserError, TypeError):
    """Argument of a type that a function cannot take, or one that it does not have."""

    kind = "argument"


class MissingFileError(UserError, FileNotFoundError):
    """File or folder that does not exist."""

    kind = "missing-file"


class PackageError(UserError, LookupError):
    """Package of an extra that is not installed."""

    kind = "missing-package"

    @classmethod
    def needed(cls, task: str, package: str | None, extra: str) -> PackageError:
        """Create the error of a missing package: "TASK the package PACKAGE: pip install 'ddsm-zoo[EXTRA]'"."""
        command = f"pip install 'ddsm-zoo[{extra}]'"
        return cls(f"{task} the package {package}: {command}", name=package, expected=command)


def facts(error: BaseException) -> dict[str, Any]:
    """Return the facts of an error as arguments of another, which says where it happened. Empty for other errors."""
    return {key: vars(error)[key] for key in ("name", "path", "got", "expected") if key in vars(error)}
