"""Match classes of two tasks by name, ignoring case, number and spelling, and by known synonyms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

# Synonyms in data sets of street, indoor and natural scenes. Each line is one class.
_SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("person", "pedestrian", "people", "human"),
    ("rider", "bicyclist", "cyclist"),
    ("sidewalk", "pavement", "footpath"),
    ("road", "street", "roadway", "drivable area"),
    ("lane marking", "road marking"),
    ("vegetation", "tree"),
    ("terrain", "grass"),
    ("traffic sign", "sign symbol", "sign", "signboard", "road sign"),
    ("traffic light", "traffic signal"),
    ("pole", "column pole", "column"),
    ("building", "house", "edifice"),
    ("car", "automobile", "auto"),
    ("truck", "lorry"),
    ("motorcycle", "motorbike"),
    ("bicycle", "bike"),
    ("train", "tram", "on rails"),
    ("airplane", "aeroplane", "plane"),
    ("couch", "sofa", "lounge"),
    ("tv", "television", "tv monitor", "monitor"),
    ("dining table", "table"),
    ("potted plant", "flowerpot"),
)
_IRREGULAR = {"people": "people", "bus": "bus", "buses": "bus", "grass": "grass", "men": "man", "women": "woman"}


def match_classes(names: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """Match each class of ``names`` to the same class of ``known``.

    Each class of ``known`` is matched at most once: first to the exact name, then to a name that differs in case,
    number or spelling, then to a synonym. Ties go to the class that comes first.

    Args:
        names: Your class names.
        known: Class names of the weights.

    Returns:
        Index in ``known`` by index in ``names``, without the classes that have no match.

    Examples:
        >>> match_classes(["boat", "Cars", "person"], ["Pedestrian", "car"])
        {1: 1, 2: 0}
    """
    matches: dict[int, int] = {}
    for key in _KEYS:
        places: dict[str, list[int]] = {}
        for index, name in enumerate(known):
            if index not in matches.values():
                places.setdefault(key(name), []).append(index)
        for index, name in enumerate(names):
            if index not in matches and places.get(key(name)):
                matches[index] = places[key(name)].pop(0)
    return dict(sorted(matches.items()))


def plain_name(name: str) -> str:
    """Normalize a name: lower case, separate words, singular. ``TrafficSigns`` becomes ``traffic sign``."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = re.findall(r"\w+", apart.replace("_", " ").casefold())
    return " ".join(_singular(word) for word in words)


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def _canonical(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """Map each normalized name of a group to the first name of its group."""
    return {plain_name(name): plain_name(group[0]) for group in groups for name in group}


_CANONICAL = _canonical(_SYNONYMS)


def _plain(name: str) -> str:
    return plain_name(name) or name  # a name without letters and digits matches only itself


def _synonym(name: str) -> str:
    return _CANONICAL.get(_plain(name), _plain(name))


_KEYS: tuple[Callable[[str], str], ...] = (str, _plain, _synonym)
