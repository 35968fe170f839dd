from __future__ import annotations

import numpy as np
import pytest

from benchmarks.evidence.borders import EDGE, score


def test_the_last_rows_and_columns_are_scored_and_their_changes_counted() -> None:
    truth = np.zeros((40, 50), np.int64)
    truth[-1, :10] = 11  # void
    mask = np.zeros((40, 50), np.uint8)
    mask[: 40 - EDGE, : 50 - EDGE] = 1  # wrong where nothing is scored
    mask[-1, 20:30] = 2
    mask[5, -1] = 3
    labeled = 40 * 50 - (40 - EDGE) * (50 - EDGE) - 10
    accuracy, changes = score(mask, truth, 11)
    assert accuracy == pytest.approx(1 - 11 / labeled)
    assert changes == 4
