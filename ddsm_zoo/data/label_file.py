"""Class names and stored mask values of a ``folder``: its ``labels.json``."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddsm_zoo.data.depth import require_bits
from ddsm_zoo.data.importing.detect import import_hint
from ddsm_zoo.data.masks import LARGEST_ID, DatasetError, MaskDecoder
from ddsm_zoo.errors import ArgumentError, facts
from ddsm_zoo.labels import Color, LabelSpace
from ddsm_zoo.utils.plain_data import from_dict

LABEL_FILE = "labels.json"
_EXPECTED = 'an object like {"names": ["road", "car"]}'
_STORED = f"a whole number from 0 to {LARGEST_ID}"


class LabelFile(NamedTuple):
    """Content of a ``labels.json``.

    Attributes:
        labels: Classes and the ignored class id.
        decode: Decoder from stored values to class ids.
        mask_suffix: Text after the image's name in the name of its mask, None if not stated.
        bits: Bits in use in 16-bit images, None if not stated.
    """

    labels: LabelSpace
    decode: MaskDecoder
    mask_suffix: str | None
    bits: int | None


@dataclass(frozen=True, kw_only=True)
class _Fields:
    names: tuple[str, ...]  # class names, the first is class 0
    palette: tuple[Color, ...] | None = None  # RGB color of each class
    ignore_index: int | None = None  # stored value without a class, and the class id it gets
    ids: Mapping[str, Any] | None = None  # stored value -> name or number of a class, or "ignore"
    ignore: Any = None  # stored value, or list of them, without a class
    ignore_colors: tuple[Color, ...] = ()  # RGB colors without a class
    zero: Literal["ignore", "class"] = "class"  # "ignore": 0 has no class, and the first class is stored as 1
    mask_suffix: str | None = None  # "_mask" for NAME_mask.png
    bits: int | None = None  # bits in use in 16-bit images


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, UTF-16 or UTF-32, with or without byte order mark. Raises ValueError for others."""
    content = path.read_bytes()
    try:
        return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            "it is not Unicode text, expected UTF-8 or UTF-16: save it as UTF-8", expected="UTF-8 or UTF-16"
        ) from error


def read_label_file(path: Path, hint_at: Callable[[], str] = str) -> LabelFile:
    """Read ``labels.json``. Raises DatasetError for a missing file and for content that does not fit together.

    ``hint_at`` returns the end of the error of a missing file, unless another format explains it.
    """
    if not path.is_file():
        hint = import_hint(path.parent) or _misnamed(path) or hint_at()
        raise DatasetError(
            f'{path} is missing, expected a file like {{"names": ["road", "car"]}}{hint}',
            kind="missing-labels",
            path=path,
        )
    try:
        given = from_dict(_Fields, _parse(read_text(path)), "labels")
        labels = _label_space(given)
        require_bits(given.bits)
        return LabelFile(labels, _decoder(given, labels), given.mask_suffix, given.bits)
    except ValueError as error:  # not text, not JSON, wrong fields, or fields that contradict each other
        raise DatasetError(f"{path} cannot be used: {error}", kind="label-file", path=path, **facts(error)) from error


def _parse(text: str) -> Any:
    """Parse the text of ``labels.json``. Raises ValueError for another text than a JSON object with names."""
    try:
        content = json.loads(text, object_pairs_hook=_unrepeated)
    except json.JSONDecodeError as error:
        found = f"no JSON at line {error.lineno}, column {error.colno}" if text.strip() else "empty"
        hint = "double quotes, no comma after the last entry, no comments"
        raise ArgumentError(f"it is {found}, expected {_EXPECTED}: {hint}", got=found, expected=_EXPECTED) from error
    except RecursionError as error:
        found = "nested too deeply"
        raise ArgumentError(f"it is {found}, expected {_EXPECTED}", got=found, expected=_EXPECTED) from error
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else "a value"
        raise ArgumentError(f"it is {found}, expected {_EXPECTED}", got=found, expected=_EXPECTED)
    return content


def _field_error(field: str, text: str, **found: Any) -> ArgumentError:
    """Create the error of a field, named as `from_dict` names fields of wrong types."""
    return ArgumentError(text, name=f"labels.{field}", **found)


def _misnamed(path: Path) -> str:
    """Return a hint at a file in the folder that ``path`` may be meant by, such as ``labels.json.txt``."""
    files = {file.name.casefold(): file.name for file in sorted(path.parent.glob("*.*")) if file.is_file()}
    near = difflib.get_close_matches(path.name, [name for name in files if ".json" in name], n=1, cutoff=0.8)
    return f"; is {files[near[0]]} meant? Call it {path.name}" if near else ""


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        key = repeated[0][:60]
        raise ArgumentError(f"it has the key {key!r} twice, expected once", got=key, expected="once")
    return dict(pairs)


def _label_space(given: _Fields) -> LabelSpace:
    for index, name in enumerate(given.names):
        if not name.strip():
            field, expected = f"names[{index}]", f"the name of class {index}"
            raise _field_error(field, f"{field} is empty, expected {expected}", got=name, expected=expected)
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            field, expected = f"names[{index}]", "a name without control characters"
            raise _field_error(field, f"{field} is {name[:60]!a}, expected {expected}", got=name, expected=expected)
    if (count := len(given.names)) > LARGEST_ID:
        text = f"it has {count} names, expected at most {LARGEST_ID}: masks have 16 bits"
        raise _field_error("names", text, got=count, expected=f"at most {LARGEST_ID}")
    # An id that no class has: 255, as is usual, unless there are more classes
    free = 255 if len(given.names) <= 255 else LARGEST_ID
    ignore = free if given.ignore_index is None else given.ignore_index
    try:
        if given.palette is None:
            return LabelSpace.from_names(given.names, ignore)
        return LabelSpace(names=given.names, palette=given.palette, ignore_index=ignore)
    except ValueError as error:
        hint = '; where 0 is unlabeled and classes start at 1, say "zero": "ignore"' if given.ignore_index == 0 else ""
        found = facts(error)
        raise _field_error(found.pop("name"), f"{error}{hint}", **found) from error


def _decoder(given: _Fields, labels: LabelSpace) -> MaskDecoder:
    ignored = _ignored_values(given, labels)
    said = given.ids is not None or given.zero == "ignore" or bool({0, 255} & ignored)
    return MaskDecoder(
        ids=_stored_ids(given, labels),
        colors=_stored_colors(given, labels),
        open_255=not said and len(labels.in_masks) == 2,
        by_number=given.ids is not None,
    )


def _stored_ids(given: _Fields, labels: LabelSpace) -> dict[int, int]:
    names, ignored = labels.in_masks.names, _ignored_values(given, labels)
    if given.ids is not None:
        if given.zero == "ignore":
            raise _field_error("zero", '"ids" and "zero" both define 0, expected one of them', got=given.zero)
        classes = _explicit_ids(given.ids, names, labels.ignore_index)
    else:
        shifted = given.zero == "ignore" or 0 in ignored
        classes = {0: labels.ignore_index} if shifted else {}
        classes |= {index + shifted: index for index in range(len(names))}
    for value in ignored:
        if classes.get(value, labels.ignore_index) != labels.ignore_index:
            raise _field_error(
                "ignore_index" if given.ignore is None else "ignore",
                f"the ignored value {value} is also the id of class {names[classes[value]]!r}; list the class of each "
                'stored value in "ids"',
                got=value,
            )
    # The usual ignored value is one unless it stands for a class.
    usual = {labels.ignore_index} if given.ignore is None else set()
    values = {value for value in ignored | usual if 0 <= value <= LARGEST_ID}
    return dict.fromkeys(values, labels.ignore_index) | classes


def _explicit_ids(ids: Mapping[str, Any], names: tuple[str, ...], ignore_index: int) -> dict[int, int]:
    classes: dict[int, int] = {}
    if not ids:
        raise _field_error("ids", '"ids" is empty, expected the class of each stored value', got=ids)
    for key, target in ids.items():
        value = int(key) if key.isascii() and key.isdigit() else -1
        if not 0 <= value <= LARGEST_ID:
            text = f'"ids" has the stored value {key[:60]!r}, expected {_STORED}'
            raise _field_error("ids", text, got=key, expected=_STORED)
        if value in classes:
            raise _field_error("ids", f'"ids" has the stored value {value} twice, expected once', got=value)
        if target == "ignore" and "ignore" not in names:
            classes[value] = ignore_index
        elif isinstance(target, str) and target in names:
            classes[value] = names.index(target)
        elif isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(names):
            classes[value] = target
        else:
            listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            expected = f'a class ({listed}), its number from 0 to {len(names) - 1}, or "ignore"'
            text = f'"ids" has {str(target)[:60]!r} for {value}, expected {expected}'
            raise _field_error("ids", text, got=target, expected=expected)
    return classes


def _ignored_values(given: _Fields, labels: LabelSpace) -> set[int]:
    values = given.ignore if isinstance(given.ignore, list) else [] if given.ignore is None else [given.ignore]
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_ID:
            text = f'"ignore" has {str(value)[:60]!r}, expected {_STORED}'
            raise _field_error("ignore", text, got=value, expected=_STORED)
    if given.ignore_index is not None and given.ids is None:
        values = [*values, labels.ignore_index]
    return set(values)


def _stored_colors(given: _Fields, labels: LabelSpace) -> dict[Color, int]:
    if given.palette is None:
        if given.ignore_colors:
            text = '"ignore_colors" is for masks in colors, expected "palette", the color of each name'
            raise _field_error("ignore_colors", text, got=given.ignore_colors)
        return {}
    spaces = labels.in_masks
    colors = {color: index for index, color in enumerate(spaces.palette)}
    if len(colors) < len(spaces):
        repeated = next(color for color, count in Counter(spaces.palette).items() if count > 1)
        sharing = [name for name, color in zip(spaces.names, spaces.palette, strict=True) if color == repeated]
        text = f"the palette has the color {list(repeated)} for {', '.join(sharing[:3])}, expected one color a class"
        raise _field_error("palette", text, got=repeated)
    for color in given.ignore_colors:
        if any(not 0 <= channel <= 255 for channel in color):
            text = f"ignore_colors has {list(color)}, expected values from 0 to 255"
            raise _field_error("ignore_colors", text, got=color, expected="values from 0 to 255")
        if color in colors:
            text = f"the ignored color {list(color)} is also that of class {spaces.names[colors[color]]!r}"
            raise _field_error("ignore_colors", text, got=color)
    return colors | dict.fromkeys(given.ignore_colors, labels.ignore_index)
