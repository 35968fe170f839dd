"""A run ends when validations stop getting better, as the log says, and a run that has ended stays so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ddsm_zoo.training.loop import fit
from tests.support.tiny_training import CLASSES, Blobs, Linear, epochs_of, fresh, recipe


class Scripted(Linear):
    """Its validations score what ``rights`` says: so many of the 3 images are right, the others wrong."""

    def __init__(self, rights: list[int]) -> None:
        super().__init__()
        self.rights = iter(rights)

    def train(self, mode: bool = True) -> Scripted:
        super().train(mode)
        if not mode:
            self.right = next(self.rights)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        logits = x.clone()  # the class is the strongest channel
        logits[self.right :] = logits[self.right :].roll(1, dims=1)
        assert logits.shape[1] == CLASSES
        return logits


def run(out: Path, rights: list[int], **fields: Any) -> dict[str, Any]:
    model = fresh(lambda: Scripted(rights))
    return fit(model, recipe(**fields), Blobs(4), Blobs(3), out, resume=True)


@pytest.mark.parametrize(
    ("rights", "fields", "epochs", "best"),
    [
        ([1, 2, 2, 1, 3], {"epochs": 5, "patience": 2}, 4, 2),
        ([1, 2, 2, 3, 1, 3, 3], {"epochs": 7, "patience": 3}, 7, 4),
        ([1, 2, 2, 1, 3], {"epochs": 5, "patience": 0}, 5, 5),
        ([2, 1, 1], {"epochs": 9, "patience": 2, "validate_every": 2}, 6, 2),
        ([1, 0], {"epochs": 2, "patience": 9}, 2, 1),
    ],
)
def test_patience_counts_validations_since_the_best(
    tmp_path: Path, rights: list[int], fields: dict[str, Any], epochs: int, best: int
) -> None:
    summary = run(tmp_path, rights, **fields)
    assert (summary["epochs"], summary["best_epoch"], summary["interrupted"]) == (epochs, best, False)
    assert len(epochs_of(tmp_path)) == epochs


def test_a_run_that_has_ended_ends_again_and_more_patience_goes_on(tmp_path: Path) -> None:
    assert run(tmp_path, [2, 1], epochs=5, patience=1)["epochs"] == 2
    assert run(tmp_path, [], epochs=5, patience=1)["epochs"] == 2
    assert run(tmp_path, [1, 3, 2], epochs=5, patience=3)["best_epoch"] == 4
    assert [line["epoch"] for line in epochs_of(tmp_path)] == [1, 2, 3, 4, 5]
