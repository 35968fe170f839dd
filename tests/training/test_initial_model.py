from __future__ import annotations

from typing import Any

import pytest

from ddsm_zoo.training.initial_model import settle_frozen
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises

# Batch norms with trained statistics, by the weights that a run starts from
STARTS = {True: ("none", "backbone", "all"), None: ("none", "backbone"), False: ("none",)}


@pytest.mark.parametrize("pretrained", STARTS)
def test_norms_are_frozen_only_with_trained_statistics(pretrained: bool | None) -> None:
    def settled(which: Any) -> str:
        return settle_frozen(Recipe(model="m", frozen_norms=which), pretrained).frozen_norms

    known = STARTS[pretrained]
    assert settled("auto") == known[-1]
    for which in ("none", "backbone", "all"):
        if which in known:
            assert settled(which) == which
        else:
            with raises(ConfigError, kind="frozen-layers", name="frozen_norms", got=which):
                settled(which)
