"""Prediction files: find the one of each image of a data set, and read it as class ids."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ddsm_zoo.data.check.palettes import PaletteCheck
from ddsm_zoo.data.images import SUFFIXES
from ddsm_zoo.data.listing import is_hidden, is_unread_picture, plain_name
from ddsm_zoo.data.mask_files import read_stored
from ddsm_zoo.data.masks import DatasetError, MaskDecoder
from ddsm_zoo.errors import facts

# Suffixes that `ddsm-zoo predict` gives its class ids, and its images next to them
_IDS, _PICTURES = "_ids.png", ("_color.png", "_colour.png", "_overlay.png")  # 0.1.0 wrote _colour


def find_predictions(folder: str | Path, names: Sequence[str]) -> list[Path]:
    """Find the file of each named image in ``folder`` or below: NAME.png, or NAME_ANYTHING.png.

    The prediction for an image in a subfolder lies in a subfolder of the same name, or anywhere if no other image has
    the name of its file. Raises DatasetError unless each image has exactly one prediction and there are no others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is no folder, expected one with a prediction NAME.png for each image NAME",
            kind="predictions",
            path=folder,
        )
    known = {name: name for name in names}
    of_stem = _unambiguous((PurePosixPath(name).name, name) for name in names)
    plain = _unambiguous((plain_name(stem), name) for stem, name in of_stem.items())
    found: dict[str, Path] = {}
    extra: list[Path] = []
    unread: list[Path] = []
    for file in sorted(folder.rglob("*")):
        below = file.relative_to(folder)
        if any(map(is_hidden, below.parts)) or _is_picture(file):
            continue
        if file.suffix.lower() not in SUFFIXES:
            unread += [file] if is_unread_picture(file) else []
            continue
        name = _known(below.with_suffix("").as_posix(), known) or _known(file.stem, of_stem)
        name = name or _known(plain_name(file.stem), plain)
        if name is None:
            extra.append(file)
        elif name in found:
            raise DatasetError(
                f"{found[name]} and {file} are both predictions for {name}, expected one of them",
                kind="predictions",
                path=folder,
                name=name,
            )
        else:
            found[name] = file
    missing = [name for name in names if name not in found]
    if missing or extra:
        raise DatasetError(
            f"{folder} does not fit the data set: {_mismatch(missing, extra, unread, len(names))}",
            kind="predictions",
            path=folder,
            got=[file.name for file in extra],
            expected=missing,
        )
    return [found[name] for name in names]


def read_prediction(
    path: Path, decode: MaskDecoder, target: Tensor, ignore_index: int, palettes: PaletteCheck, hint: str = ""
) -> Tensor:
    """Read the class ids (h, w) in ``path``, decoded by ``decode``, for the label ``target`` (h, w).

    ``palettes`` has the palettes of the predictions before it.

    Raises ImageError for an unreadable file. Raises DatasetError for another size than the label's, for several pages
    and, with the ``hint``, for a file or values that are no classes, for indices that an earlier file shows in other
    colors, and for ignored ids where the label has a class.
    """
    stored = read_stored(path)
    if stored.pages > 1:
        raise DatasetError(
            f"prediction {path} has {stored.pages} pages, expected one with the class ids",
            kind="predictions",
            path=path,
        )
    if contradiction := palettes.add(path.name, stored, decode):
        raise DatasetError(
            f"the palettes of predictions contradict each other: {contradiction}; expected the class ids as indices, "
            "in one palette for all files",
            kind="palette-mask",
            path=path,
        )
    try:
        ids = torch.from_numpy(decode.decode(stored))
    except DatasetError as error:
        raise DatasetError(f"prediction {error}{hint}", kind=error.kind, **facts(error)) from error
    if ids.shape != target.shape:
        raise DatasetError(
            f"prediction {path} is {ids.shape[1]} x {ids.shape[0]} pixels, "
            f"expected {target.shape[1]} x {target.shape[0]} as its label",
            kind="size-mismatch",
            path=path,
            got=tuple(ids.shape),
            expected=tuple(target.shape),
        )
    silent = (ids == ignore_index) & (target != ignore_index)
    if silent.any():
        row, column = silent.nonzero()[0].tolist()
        raise DatasetError(
            f"prediction {path} is void at row {row}, column {column}, expected a class where labeled{hint}",
            kind="predictions",
            path=path,
            got=ignore_index,
        )
    return ids


def _known(name: str, names: Mapping[str, str]) -> str | None:
    """Return what ``names`` has for the longest beginning of a name."""
    return next((names[prefix] for prefix in _prefixes(name) if prefix in names), None)


def _is_picture(file: Path) -> bool:
    """Return True if the file is a visualization of class ids next to it. A prediction for x_color is not one."""
    bases = [file.name.removesuffix(end) for end in _PICTURES if file.name.endswith(end)]
    return any(file.with_name(f"{base}{_IDS}").is_file() for base in bases)


def _prefixes(stem: str) -> Iterable[str]:
    """Iterate over the stem, then the stem without its last parts: a_b_c, a_b, a."""
    parts = stem.split("_")
    return ("_".join(parts[:count]) for count in range(len(parts), 0, -1))


def _unambiguous(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Index names by keys, without the keys of several names."""
    pairs = list(pairs)
    counts = Counter(key for key, _ in pairs)
    return {key: name for key, name in pairs if counts[key] == 1}


def _mismatch(missing: Sequence[str], extra: Sequence[Path], unread: Sequence[Path], total: int) -> str:
    phrases = []
    if missing:
        phrases.append(f"no prediction for {len(missing)} of {total} images, first {missing[0]}")
    if extra:
        phrases.append(f"no image for {len(extra)} of its files, first {extra[0].name}")
    if missing and unread:
        phrases.append(f"{len(unread)} files are in a format that is not read, first {unread[0].name}, expected PNG")
    if missing and extra:
        near = difflib.get_close_matches(missing[0], [file.stem for file in extra], n=1)
        phrases.append(f"is {near[0]} misnamed?" if near else "expected NAME.png or NAME_ANYTHING.png")
    return "; ".join(phrases)
