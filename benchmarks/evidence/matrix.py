"""A matrix file: arms x folds x seeds, trained by one recipe or by variants of it."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.plain_data import ConfigError, from_dict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAME = re.compile(r"[A-Za-z0-9_]+")
# Fields of the recipe that an arm or a cell sets: changes of them would have no effect
_SET_BY = {"model": "as the arm's model", "overrides": "as the arm's overrides", "seed": "in seeds or pairs"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is under comparison: a model of the zoo with changes to its config, or a variant of the recipe."""

    model: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of the recipe, of this arm alone
    title: str = ""  # what differs, for the page


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """How images are divided into folds. Each fold is validated on once, the rest is trained on.

    Raises ConfigError for a plan without folds.
    """

    by: Literal["sequence", "block"]  # file name before the first underscore, or neighbors by name
    names: tuple[str, ...] = ()  # the sequences to hold out, one fold each
    count: int = 0  # the number of blocks
    ids: Mapping[str, int] = field(default_factory=dict)  # stored mask value -> class id, where masks hold others

    def __post_init__(self) -> None:
        if self.by == "sequence" and not self.names:
            raise ConfigError("names is empty, expected the sequences to hold out")
        if self.by == "block" and self.count < 2:
            raise ConfigError(f"count is {self.count}, expected at least 2 blocks")
        _check_names("the sequence", self.names)
        for value in self.ids:
            if not (value.isascii() and value.isdigit() and int(value) < 65536):
                raise ConfigError(f"ids has the mask value {value!r}, expected a whole number from 0 to 65535")

    @property
    def folds(self) -> tuple[str, ...]:
        """The names of the folds."""
        return self.names if self.by == "sequence" else tuple(f"block{number + 1}" for number in range(self.count))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of the matrix."""

    arm: str
    fold: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.fold}-{self.seed}"

    def __str__(self) -> str:
        return f"{self.arm} {self.fold} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Arms x folds x seeds.

    Raises ConfigError, naming the field, for values that cannot be.
    """

    name: str
    recipe: str  # a name of `ddsm-zoo recipes`, or a path
    arms: Mapping[str, Arm]
    folds: FoldPlan
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of the recipe, of all arms
    baseline: str = "plain"  # the arm that all others are compared with
    treatment: str = "ddsm"  # the arm that the question is about; its pairs with the baseline are trained first
    seeds: tuple[int, ...] = ()  # every fold with every seed
    pairs: tuple[tuple[str, int], ...] = ()  # or these folds with these seeds
    backbone_weights: bool = True  # start from the backbone's ImageNet weights

    def __post_init__(self) -> None:
        _check_names("the name", (self.name, *self.arms))
        for role in ("baseline", "treatment"):
            if getattr(self, role) not in self.arms:
                raise ConfigError(f"{role} is {getattr(self, role)!r}, expected one of the arms {', '.join(self.arms)}")
        if bool(self.seeds) == bool(self.pairs):
            raise ConfigError("expected either seeds or pairs of a fold and a seed")
        runs = self.runs()
        unknown = [fold for fold, _ in runs if fold not in self.folds.folds]
        if unknown:
            raise ConfigError(f"pairs has the fold {unknown[0]!r}, expected some of {', '.join(self.folds.folds)}")
        if len(set(runs)) < len(runs) or min(seed for _, seed in runs) < 0:
            raise ConfigError("seeds and pairs must differ from each other, with seeds of 0 or more")
        _check_changes("changes", self.changes)
        for name, arm in self.arms.items():
            _check_changes(f"changes of arm {name}", arm.changes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Matrix:
        """Read a TOML file.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: the file is not a matrix, or its recipe cannot be.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no matrix at {path}, expected a TOML file such as benchmarks/evidence/quick.toml")
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # not TOML, or not UTF-8
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        matrix = from_dict(cls, data, where=str(path))
        for cell in matrix.cells():
            matrix.recipe_of(cell)
        return matrix

    def runs(self) -> list[tuple[str, int]]:
        """The fold and the seed of every training of an arm."""
        return list(self.pairs) or [(fold, seed) for seed in self.seeds for fold in self.folds.folds]

    def cells(self) -> list[Cell]:
        """Every training, in the order in which they start.

        Baseline and treatment come first, side by side. The other arms follow one after the other, so that an early
        end leaves whole arms.
        """
        first = [name for name in self.arms if name in (self.baseline, self.treatment)]
        cells = [Cell(arm=arm, fold=fold, seed=seed) for fold, seed in self.runs() for arm in first]
        rest = [name for name in self.arms if name not in first]
        return cells + [Cell(arm=arm, fold=fold, seed=seed) for arm in rest for fold, seed in self.runs()]

    def recipe_of(self, cell: Cell) -> Recipe:
        """The recipe of one training. It validates at the end alone, so nothing is selected on the held-out fold."""
        arm = self.arms[cell.arm]
        own = {"model": arm.model, "overrides": dict(arm.overrides), "seed": cell.seed}
        recipe = Recipe.load(self.recipe, {**self.changes, **arm.changes, **own})
        return dataclasses.replace(recipe, validate_every=recipe.epochs, patience=0)


def _check_names(what: str, names: tuple[str, ...]) -> None:
    """They become names of files."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{what} {name!r} cannot be, expected letters, digits and underscores")


def _check_changes(what: str, changes: Mapping[str, Any]) -> None:
    for name in changes:
        if name in _SET_BY:
            raise ConfigError(f"{what} has {name}, which has no effect there; give it {_SET_BY[name]}")
