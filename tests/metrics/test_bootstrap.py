"""The units that the bootstrap draws, and what it says about them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from ddsm_zoo.metrics.bootstrap import Resampling, check_unit
from tests.support.errors import raises

CLIP = [f"0016E5_{frame:05}" for frame in range(7959, 8161, 2)]  # CamVid's val


def plan(by: str, names: Sequence[str], sequences: Sequence[str | None] | None = None) -> Resampling:
    return Resampling.plan(by, names, sequences or [name.rpartition("_")[0] for name in names])


def test_units_of_images_sequences_and_blocks() -> None:
    names = ["a_1", "a_2", "b_1", "a_3", "b_2"]
    assert plan("image", names).units == (0, 1, 2, 3, 4)
    assert plan("sequence", names).units == (0, 0, 1, 0, 1)
    assert plan("block:2", names).units == (0, 0, 1, 2, 1)
    assert plan("block:1", names).count == plan("image", names).count == 5


def test_blocks_follow_the_numbers_of_frames_not_the_order_of_characters() -> None:
    names = [f"clip_{frame}" for frame in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9)]
    units = dict(zip(names, plan("block:4", names).units, strict=True))
    blocks = [{frame for frame in range(1, 13) if units[f"clip_{frame}"] == unit} for unit in set(units.values())]
    assert sorted(map(sorted, blocks)) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def test_blocks_of_names_that_tell_no_sequence() -> None:
    assert plan("block:2", ["1", "2", "3"], [None] * 3).units == (0, 0, 1)


@pytest.mark.parametrize(
    ("by", "names", "message"),
    [
        ("sequence", CLIP, "101 images .* use block:10"),
        ("block:101", CLIP, "101 images .* use block:10"),
        ("frame", CLIP, "image, sequence or block:N"),
        ("block", CLIP, "block:N"),
        ("block:0", CLIP, "block:N"),
        ("block:-5", CLIP, "block:N"),
        ("block:2.5", CLIP, "block:N"),
    ],
)
def test_units_that_cannot_be(by: str, names: Sequence[str], message: str) -> None:
    with raises(ValueError, name="by", got=by) as error:
        plan(by, names)
    assert re.search(message, str(error.value))


def test_names_that_tell_no_sequence() -> None:
    with raises(ValueError, name="by", got="beach", expected="SEQUENCE_FRAME"):
        plan("sequence", ["a_1", "beach", "tree"], ["a", None, None])
    check_unit("sequence")


@pytest.mark.parametrize(
    ("by", "names", "words"),
    [
        ("image", CLIP, ["101 images are too narrow", "101 are frames of 1 sequence,", "use --bootstrap-by block:10"]),
        ("image", [f"s{clip}_{frame}" for clip in range(12) for frame in "12"], ["use --bootstrap-by sequence"]),
        ("image", [f"s{clip}_1" for clip in range(12)], ["12 images, each from its own sequence: valid"]),
        ("sequence", [f"s{clip}_{frame}" for clip in range(12) for frame in "12"], ["12 sequences: valid"]),
        ("sequence", ["a_1", "b_1", "c_1"], ["3 sequences: valid for video frames; only 3, so they are rough"]),
        ("block:10", CLIP, ["11 blocks of up to 10 consecutive images: valid", "nothing about other places"]),
        ("block:50", CLIP, ["only 3, so they are rough"]),
    ],
)
def test_the_note_says_what_is_valid_for_video_frames(by: str, names: Sequence[str], words: Sequence[str]) -> None:
    note = plan(by, names).note
    assert [word for word in words if word not in note] == []
    assert "\n" not in note


def test_the_note_on_images_of_unknown_origin() -> None:
    note = plan("image", [str(index) for index in range(40)], [None] * 40).note
    assert "valid if they are independent" in note
    assert "too narrow if they are frames of a video, then use --bootstrap-by block:4" in note
