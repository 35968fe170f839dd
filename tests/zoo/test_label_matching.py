"""Which classes of two data sets are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.labels import CAMVID, CITYSCAPES
from ddsm_zoo.zoo.label_matching import match_classes, plain_name

NAMES = st.lists(st.text(max_size=6), max_size=6, unique=True)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Road", "road"),
        ("ROADS", "road"),
        ("traffic_sign", "Traffic Signs"),
        ("TrafficSign", "traffic-sign"),
        ("bushes", "Bush"),
        ("berries", "berry"),
        ("buses", "bus"),
        ("glasses", "glass"),
        ("boxes", "box"),
        ("persons", "People"),
        ("Pedestrian", "person"),
        ("motor bikes", "motor bike"),
        ("Sofas", "couch"),
    ],
)
def test_one_class_by_two_names(name: str, known: str) -> None:
    assert match_classes([name], [known]) == {0: 0}
    assert match_classes([known], [name]) == {0: 0}


@pytest.mark.parametrize(
    ("name", "known"),
    [("bus", "bu"), ("grass", "gras"), ("car", "cart"), ("traffic light", "light"), ("bike", "rider"), ("?", "-")],
)
def test_two_classes_of_similar_names(name: str, known: str) -> None:
    assert match_classes([name], [known]) == {}


def test_cityscapes_and_camvid() -> None:
    found = match_classes(CAMVID.names, CITYSCAPES.names)
    assert {CAMVID.names[new]: CITYSCAPES.names[old] for new, old in found.items()} == {
        "Sky": "sky",
        "Building": "building",
        "Pole": "pole",
        "Road": "road",
        "Pavement": "sidewalk",
        "Tree": "vegetation",
        "SignSymbol": "traffic sign",
        "Fence": "fence",
        "Car": "car",
        "Pedestrian": "person",
        "Bicyclist": "rider",
    }


def test_the_nearest_name_comes_first() -> None:
    assert match_classes(["pedestrian", "Person", "person"], ["person"]) == {2: 0}
    assert match_classes(["pedestrian", "Persons"], ["person"]) == {1: 0}
    assert match_classes(["people", "human"], ["pedestrian", "person"]) == {0: 0, 1: 1}
    assert match_classes(["person"], ["pedestrian", "people", "persons"]) == {0: 2}


@given(NAMES, NAMES)
def test_no_class_is_given_twice_and_equal_names_always_match(names: list[str], known: list[str]) -> None:
    found = match_classes(names, known)
    assert len(set(found.values())) == len(found)
    assert set(found) <= set(range(len(names)))
    assert set(found.values()) <= set(range(len(known)))
    for index, name in enumerate(names):
        assert name not in known or found[index] == known.index(name)


@given(st.text(max_size=20))
def test_a_plain_name_is_plain_already(name: str) -> None:
    once = plain_name(name)
    assert once == once.casefold() == " ".join(once.split())
