"""Frozen dataclasses to and from plain JSON-ready data, strictly."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from ddsm_zoo.errors import UserError, facts


class ConfigError(UserError, ValueError):
    """Invalid configuration. The message names the field, its value and the values it accepts."""

    kind = "config"


ConfigT = TypeVar("ConfigT")

# Fields that fit into an error
_FEW = 12


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a frozen config to plain JSON-ready data. `from_dict` is the inverse."""
    return dataclasses.asdict(config)


def from_dict(cls: type[ConfigT], data: object, where: str = "config") -> ConfigT:
    """Build the frozen dataclass ``cls`` from parsed JSON or TOML, strictly.

    Raises ConfigError for an unknown or missing field and for a value of the wrong type. The message names the field by
    its path below ``where``. ``cls.SYNONYMS``, if there are any, maps names that other libraries use to fields: they
    are suggested, not accepted.
    """
    if not isinstance(data, Mapping):
        raise wrong_type(where, data, "a table of fields")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    unknown = sorted(str(key) for key in data if key not in fields)
    if unknown:
        expected = ", ".join(fields)
        synonym = getattr(cls, "SYNONYMS", {}).get(unknown[0])
        nearest = [synonym] if synonym else difflib.get_close_matches(unknown[0][:60], fields, n=1)
        # a short list is named in any case: the nearest name may mean something else
        hint = f", expected {expected}" if not nearest or len(fields) <= _FEW else ""
        hint += f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(
            f"{where} has unknown field {unknown[0][:60]!r}{hint}",
            name=unknown[0],
            expected=expected,
            kind="unknown-field",
        )
    for name, declared in fields.items():
        required = declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(f"{where} lacks the field {name!r}", name=name, kind="unknown-field")
    values = {name: _coerce(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        kind = error.kind if isinstance(error, ConfigError) else None
        raise ConfigError(f"{where}: {printable(error)}", kind=kind, **facts(error)) from error


def printable(text: object) -> str:
    """Make text from outside safe for a one-line error: at most 300 characters, unprintable ones replaced by "?"."""
    return "".join(char if char.isprintable() else "?" for char in str(text)[:300])


def _coerce(hint: Any, value: object, where: str) -> Any:
    """Convert ``value`` to the type ``hint``: lists become tuples and whole numbers floats. Nothing else converts."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value, where)
    if origin is Literal:
        if value in args:
            return value
        raise wrong_type(where, value, f"one of {', '.join(map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        words = [word for arg in args if typing.get_origin(arg) is Literal for word in typing.get_args(arg)]
        if value in words or (value is None and type(None) in args):
            return value
        other = next(arg for arg in args if arg is not type(None) and typing.get_origin(arg) is not Literal)
        if words and isinstance(value, str):
            kind = "a list" if typing.get_origin(other) is tuple else other.__name__
            raise wrong_type(where, value, " or ".join([kind, *words]))
        return _coerce(other, value, where)
    if origin is tuple:
        return _coerce_tuple(args, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise wrong_type(where, value, "a table")
        return {
            _coerce(args[0], key, where): _coerce(args[1], item, f"{where}.{printable(key)}")
            for key, item in value.items()
        }
    return value if hint is Any else _coerce_plain(hint, value, where)


def _coerce_plain(hint: Any, value: object, where: str) -> Any:
    # a larger one would overflow a float or flood the error message
    if isinstance(value, int) and abs(value) >= 2**63:
        raise wrong_type(where, value, "a number of at most 64 bits")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int, but `true` is not a count
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise wrong_type(where, value, hint.__name__)
    return value


def _coerce_tuple(args: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise wrong_type(where, value, "a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_coerce(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(value) != len(args):
        raise ConfigError(
            f"{where} has {len(value)} entries, expected {len(args)}", name=where, got=len(value), expected=len(args)
        )
    return tuple(
        _coerce(arg, item, f"{where}[{index}]") for index, (arg, item) in enumerate(zip(args, value, strict=True))
    )


def wrong_type(where: str, value: object, expected: str) -> ConfigError:
    text = repr(value)
    shown = f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"
    return ConfigError.of(where, value, expected, shown=shown)
