"""Arms begin alike in all that they share."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from benchmarks.evidence.arms import build_arm
from benchmarks.evidence.matrix import Matrix
from ddsm_zoo import create_model
from ddsm_zoo.labels import CAMVID
from tests.support.matrices import small


def state(matrix: Matrix, arm: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return build_arm(matrix, arm, CAMVID, seed).state_dict()


def test_arms_begin_with_the_same_value_in_every_tensor_that_they_share(tmp_path: Path) -> None:
    matrix = small(tmp_path)
    states = {arm: state(matrix, arm) for arm in matrix.arms}
    for one, other in itertools.combinations(states.values(), 2):
        shared = [name for name in one.keys() & other.keys() if one[name].shape == other[name].shape]
        assert {"backbone", "decoder", "classifier"} == {name.partition(".")[0] for name in shared}
        for name in shared:
            assert torch.equal(one[name], other[name]), name
    for arm, half in (("s", "spatial"), ("c", "channel")):
        assert any(f".{half}." in name for name in states[arm].keys() & states["ddsm"].keys())


def test_seeds_differ_and_constructors_alone_would_differ_too(tmp_path: Path) -> None:
    matrix = small(tmp_path)
    assert not torch.equal(state(matrix, "ddsm")["classifier.weight"], state(matrix, "ddsm", 1)["classifier.weight"])
    weights = []
    for arm in ("plain", "ddsm"):
        torch.manual_seed(0)
        weights.append(create_model(matrix.arms[arm].model, labels=CAMVID).classifier.weight)
    assert not torch.equal(*weights)
