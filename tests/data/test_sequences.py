"""Sequences by the names of files."""

from __future__ import annotations

import pytest

from ddsm_zoo.data.sequences import sequence_of


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("0016E5_07959", "0016E5"),
        ("0006R0_f02040", "0006R0"),
        ("Seq05VD_f00000", "Seq05VD"),
        ("munster_000012_000019", "munster_000012"),
        ("monchengladbach_000000_035713", "monchengladbach_000000"),
        ("000017_10", "000017"),
        ("beach", None),
        ("000019", None),
        ("street_left", None),
        ("_12", None),
    ],
)
def test_a_sequence_is_all_before_the_number_of_the_frame(name: str, sequence: str | None) -> None:
    assert sequence_of(name) == sequence
