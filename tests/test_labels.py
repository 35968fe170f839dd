"""The meaning of ids, for a single class too."""

from __future__ import annotations

import pytest

from ddsm_zoo.labels import CAMVID, LabelSpace
from tests.support.errors import raises


def test_masks_of_a_single_class_hold_background_and_class() -> None:
    crack = LabelSpace(names=("crack",), palette=((200, 10, 20),), ignore_index=7)
    assert len(crack) == 1  # one logit
    assert crack.in_masks == LabelSpace(
        names=("background", "crack"), palette=((0, 0, 0), (200, 10, 20)), ignore_index=7
    )
    assert crack.in_masks.in_masks == crack.in_masks
    assert LabelSpace.from_names(["Background"]).in_masks.names == ("not background", "Background")
    assert CAMVID.in_masks is CAMVID


@pytest.mark.parametrize(("ignored", "taken"), [(0, "background"), (1, "crack")])
def test_neither_id_of_a_single_class_can_be_ignored(ignored: int, taken: str) -> None:
    with raises(ValueError, kind="argument", name="ignore_index", got=ignored) as error:
        LabelSpace.from_names(["crack"], ignore_index=ignored)
    assert f"'{taken}'" in str(error.value)
