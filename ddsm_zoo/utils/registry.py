"""Registries of named things that you can add to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ddsm_zoo.errors import ArgumentError, UserError

ValueT = TypeVar("ValueT")


class UnregisteredError(UserError, LookupError):
    """Unknown name in a registry. The message says what to import."""

    kind = "unregistered"


class Registry(Mapping[str, ValueT]):
    """Mapping of names to values, in the order of registration. ``kind`` is the word for one of them."""

    def __init__(self, kind: str, known: Mapping[str, ValueT] | None = None) -> None:
        self.kind = kind
        self._known = dict(known or {})

    def register(self, name: str, value: ValueT) -> None:
        """Add a name. Raises ValueError if it is taken or is not lower-case letters, digits and underscores."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ArgumentError(
                f"{name[:80]!r} is not a name for a {self.kind}, expected lower-case letters, digits and underscores",
                kind="bad-name",
                name=name,
            )
        if name in self._known:
            raise ArgumentError(
                f"a {self.kind} named {name!r} exists already; register yours under another name",
                kind="bad-name",
                name=name,
            )
        self._known[name] = value

    def __getitem__(self, name: str) -> ValueT:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, name: str) -> ValueT:
        """Return the value of a name. Raises UnregisteredError."""
        if name in self._known:
            return self._known[name]
        nearest = difflib.get_close_matches(name[:80], self._known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"registered: {', '.join(self._known)}"
        raise UnregisteredError(
            f"no {self.kind} named {name[:80]!r}; {hint}; one of your own must be registered first: import its module "
            "(--plugin MODULE)",
            name=name,
        )


# Defined here and not next to their values, because listing models must not load torch. `layers.fusion` and
# `models.decoders` fill them and give them their types.
DECODERS: Registry[Any] = Registry("decoder")
FUSIONS: Registry[Any] = Registry("fusion")
