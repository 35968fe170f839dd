"""Recipes: what the paper's defaults are, what a file may say, and what the error says when it may not."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddsm_zoo.training.optimizer import (
    create_optimizer,
    parameter_groups,
    schedule,
    set_learning_rate,
    warn_of_high_rate,
)
from ddsm_zoo.training.recipe import Recipe, UnknownRecipeError, copy_recipe, list_recipes, parse_change
from ddsm_zoo.utils.files import OutputError
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers() -> None:
    recipe = Recipe(model="m")
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (recipe.power, recipe.warmup_steps, recipe.scale, recipe.crop_size) == (0.9, 0, (0.75, 2.0), (1024, 1024))


def test_load(tmp_path: Path) -> None:
    text = 'model = "m"\nlr = 1\ncrop_size = [3, 4]\noptimizer = "adamw"\n[overrides]\nwidth = 64\n'
    recipe = Recipe.load(write(tmp_path, text))
    assert recipe == Recipe(model="m", lr=1.0, crop_size=(3, 4), optimizer="adamw", overrides={"width": 64})
    assert recipe.to_plain()["crop_size"] == [3, 4]


def test_a_word_is_a_recipe_of_the_package_and_all_else_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("finetune", "finetune.toml", "sub/finetune", "MINE.TOML"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f'model = "{name}"')
    assert Recipe.load("finetune").model == "uper_ddsm_lite0_camvid"
    paths = ("finetune.toml", "./finetune", "sub/finetune", str(tmp_path / "finetune"), Path("finetune"), "MINE.TOML")
    assert [Recipe.load(path).model for path in paths] == [
        *("finetune.toml", "finetune", "sub/finetune", "finetune", "finetune", "MINE.TOML")
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("finetun", "unknown recipe 'finetun'; did you mean finetune?"),
        ("camvid_r10", "did you mean camvid_r101"),
        ("zzz", "unknown recipe 'zzz'; `ddsm-zoo recipes` has all names, and a path ends in .toml"),
        ("", "unknown recipe ''"),
        ("..", "unknown recipe '..'"),
        ("*", "unknown recipe '*'"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownRecipeError) as error:
        Recipe.load(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_about_is_for_readers_alone(tmp_path: Path) -> None:
    path = write(tmp_path, 'about.hardware = "a laptop"\nmodel = "m"\n')
    recipe = Recipe.load(path)
    assert (recipe.about.hardware, recipe.about.score) == ("a laptop", "")
    assert recipe == Recipe(model="m")
    assert recipe.to_plain() == Recipe(model="m").to_plain()
    assert "about" not in recipe.to_plain()
    with raises(ConfigError, kind="unknown-field", name="hardwear", expected="purpose, hardware, duration, score"):
        Recipe.load(write(tmp_path, 'about.hardwear = "a laptop"\nmodel = "m"\n'))


@pytest.mark.parametrize("name", list_recipes())
def test_a_copy_is_the_same_recipe_and_its_command_names_the_copy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = copy_recipe(name)
    assert copy == Path(f"{name}.toml")
    original = Recipe.load(name)
    assert Recipe.load(copy) == original
    assert Recipe.load(copy).about == original.about
    assert f"--recipe {name}.toml " in copy.read_text()
    assert f"--recipe {name} " not in copy.read_text()
    assert "--recipe 'my runs/a.toml' " in copy_recipe(name, "my runs/a.toml").read_text()


def test_a_copy_overwrites_nothing(tmp_path: Path) -> None:
    taken = write(tmp_path, "mine")
    with raises(OutputError, path="recipe.toml", errno=errno.EEXIST):
        copy_recipe("finetune", taken)
    with raises(ValueError, kind="file-suffix", path="mine", expected=".toml"):
        copy_recipe("finetune", tmp_path / "mine")
    with pytest.raises(UnknownRecipeError):
        copy_recipe("finetun", tmp_path / "mine.toml")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("recipe.toml", "mine")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the field 'model'"),
        ('model = ""', "model is empty"),
        ('model = "m"\nlearning_rate = 1.0', "unknown field 'learning_rate'; did you mean 'lr'?"),
        ('model = "m"\nzzz = 1.0', "unknown field 'zzz', expected model"),
        ('model = "m"\nepochs = "ten"', "epochs is 'ten' (str), expected int"),
        ('model = "m"\nepochs = 0', "epochs is 0, expected at least 1"),
        ('model = "m"\noptimizer = "adam"', "optimizer is 'adam' (str), expected one of sgd, adamw"),
        ('model = "m"\nprecision = "fp8"', "precision is 'fp8' (str), expected one of no, bf16, fp16, auto"),
        ('model = "m"\nscale = [2.0, 1.0]', "scale is (2.0, 1.0), expected two factors"),
        ('model = "m"\ncrop_size = [64]', "crop_size has 1 entries, expected 2"),
        ('model = "m"\ncrop_size = [64, 0]', "crop_size is (64, 0), expected"),
        ('model = "m"\nlr = nan', "lr is nan, expected more than 0"),
        ('model = "m"\nseed = -1', "seed is -1, expected 0 or more"),
        ('model = "m"\nema_decay = 1.0', "ema_decay is 1.0, expected from 0 up to 1"),
        ('model = "m"\nema_decay = "some"', "ema_decay"),
        ('model = "m"\nflip = 1.5', "flip is 1.5, expected a probability"),
        ('model = "m"\nbatch_size = "auto"', "batch_size is 'auto' (str), expected int"),
        ('model = "m"\nbatch_size = -1', "batch_size is -1, expected 0 or more"),
        ('model = "m"\nimages_per_epoch = -1', "images_per_epoch is -1, expected 0 or more"),
        ('model = "m"\nsampling = "rare"', "sampling is 'rare' (str), expected one of uniform, balanced"),
        ('model = "m"\nholdout = 0.0', "holdout is 0.0, expected more than 0"),
        ('model = "m"\nholdout = 1', "holdout is 1.0, expected less than 1"),
        ('model = "m"\nstage_decay = 1.5', "stage_decay is 1.5, expected more than 0 and at most 1"),
        ('model = "m"\nfrozen_stages = -1', "frozen_stages is -1, expected 0 or more, or all"),
        (
            'model = "m"\nfrozen_stages = "backbone"',
            "frozen_stages is 'backbone' (str), expected int or all",
        ),
        ('model = "m"\nfrozen_stages = 1.0', "frozen_stages is 1.0 (float), expected int"),
        (
            'model = "m"\nfrozen_norms = "decoder"',
            "frozen_norms is 'decoder' (str), expected one of none",
        ),
        ('model = "m"\nclass_weights = "median"', "class_weights is 'median' (str), expected a list or auto"),
        ('model = "m"\nclass_weights = [1.0, -1.0]', "class_weights is (1.0, -1.0), expected numbers of 0 or more"),
        ('model = "m"\nclass_weights = [0, 0]', "class_weights is (0.0, 0.0), expected numbers of 0 or more, not all"),
        ('model = "m"\nclass_weights = []', "class_weights is (), expected numbers"),
        ('model = "m"\nclass_weights = [nan]', "class_weights is (nan,), expected numbers"),
        ('model = "m"\nohem = 1.0', "ohem is 1.0, expected from 0 up to 1"),
        ('model = "m"\nohem_keep = 0.0', "ohem_keep is 0.0, expected more than 0 and at most 1"),
        ('model = "m"\npatience = -2', "patience is -2, expected 0 or more"),
        ('model = "m', "is not valid TOML"),
        ("model = \udcff", "is not valid TOML"),
    ],
)
def test_bad_recipes_name_file_and_field_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as error:
        Recipe.load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_words_and_values_of_one_field(tmp_path: Path) -> None:
    text = 'model = "m"\nfrozen_stages = "all"\nclass_weights = [1, 2.5]\n'
    recipe = Recipe.load(write(tmp_path, text))
    assert (recipe.frozen_stages, recipe.class_weights) == ("all", (1.0, 2.5))
    recipe = Recipe.load(write(tmp_path, 'model = "m"\nclass_weights = "auto"\nfrozen_stages = 2\n'))
    assert (recipe.frozen_stages, recipe.class_weights) == (2, "auto")


def test_changes_take_the_place_of_fields(tmp_path: Path) -> None:
    path = write(tmp_path, 'model = "m"\nlr = 1.0\nepochs = 3\n')
    assert Recipe.load(path, {"lr": 2, "model": "n"}) == Recipe(model="n", lr=2.0, epochs=3)
    with raises(ConfigError, kind="unknown-field", name="lrr"):
        Recipe.load(path, {"lrr": 2})
    with raises(ConfigError, name=f"{path}.epochs", got="x", expected="int"):
        Recipe.load(path, {"epochs": "x"})


def test_synonyms_are_names_of_no_field_and_mean_one() -> None:
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert fields.isdisjoint(Recipe.SYNONYMS)
    assert fields.issuperset(Recipe.SYNONYMS.values())


plain_words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True).filter(
    lambda word: word not in ("true", "false", "inf", "nan")
)
numbers = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
toml_values = numbers | st.booleans() | plain_words


@given(name=plain_words, value=toml_values | st.lists(st.integers(0, 9)), gap=st.sampled_from(["", " "]))
def test_a_change_is_a_field_and_a_value_of_toml(name: str, value: object, gap: str) -> None:
    written = str(value).lower() if isinstance(value, bool) else str(value)
    assert parse_change(f"{gap}{name}{gap}={gap}{written}") == (name, value)
    if isinstance(value, str):
        assert parse_change(f'{name} = "{value}"') == (name, value)


@pytest.mark.parametrize("text", ["", "lr", "=3", "lr=", "lr = ", "learning rate=3", "a.b=1", "lr\nx=3"])
def test_what_is_no_change(text: str) -> None:
    with raises(ConfigError, kind="config", got=text):
        parse_change(text)


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_no_recipe(tmp_path: Path, name: str) -> None:
    with raises(FileNotFoundError, kind="missing-file", path=str(tmp_path / name)):
        Recipe.load(tmp_path / name)


def test_a_path_that_ends_like_a_name_says_so(tmp_path: Path) -> None:
    with raises(FileNotFoundError, kind="missing-file", path="recipes/finetune.toml") as error:
        Recipe.load(f"{tmp_path}/recipes/finetune.toml")
    assert str(error.value).endswith(" finetune")


@given(steps=st.integers(1, 500), warmup=st.integers(0, 50))
def test_schedule_rises_then_falls_and_stays_within_bounds(steps: int, warmup: int) -> None:
    recipe = Recipe(model="m", warmup_steps=warmup)
    factors = [schedule(step, steps, recipe) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    falling = factors[warmup:]
    assert falling == sorted(falling, reverse=True)
    assert falling == [pytest.approx((1 - step / steps) ** 0.9) for step in range(warmup, steps)]
    if warmup < steps:
        assert factors[0] == pytest.approx(1 / (warmup + 1))


@pytest.mark.parametrize(("share", "steps", "warmup"), [(0.1, 200, 20), (0.1, 75, 7.5), (0.02, 25, 0.5), (0, 75, 0)])
def test_a_warmup_below_one_is_a_share_of_the_run(share: float, steps: int, warmup: float) -> None:
    factors = [schedule(step, steps, Recipe(model="m", warmup_steps=share)) for step in range(steps)]
    falling = [(1 - step / steps) ** 0.9 for step in range(steps)]
    rising = [min(1.0, (step + 1) / (warmup + 1)) for step in range(steps)]
    assert factors == pytest.approx([fall * rise for fall, rise in zip(falling, rising, strict=True)])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.rows = nn.Parameter(nn.Linear(4, 8).weight.detach())
        self.head = nn.Conv2d(4, 2, 1)


def settings_by_parameter(recipe: Recipe) -> dict[str, tuple[float, float]]:
    net = Net()
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in parameter_groups(net, recipe) for p in g["params"]}
    return {name: settings[id(parameter)] for name, parameter in net.named_parameters()}


def test_adamw_decays_kernels_alone_and_the_backbone_has_its_own_rate() -> None:
    recipe = Recipe(model="m", optimizer="adamw", lr=0.5, backbone_lr=0.1, weight_decay=0.2)
    assert settings_by_parameter(recipe) == {
        "backbone.0.weight": (0.1, 0.2),
        "backbone.0.bias": (0.1, 0.0),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.1, 0.0),
        "rows": (0.5, 0.0),
        "head.weight": (0.5, 0.2),
        "head.bias": (0.5, 0.0),
    }


def test_sgd_decays_everything_as_the_paper_does() -> None:
    assert set(settings_by_parameter(Recipe(model="m")).values()) == {(0.01, 5e-4)}


def test_frozen_parameters_are_left_out() -> None:
    net = Net()
    net.backbone.requires_grad_(False)
    groups = parameter_groups(net, Recipe(model="m", backbone_lr=0.1))
    assert [len(group["params"]) for group in groups] == [3]
    with raises(ValueError, name="model", got=0):
        create_optimizer(net.requires_grad_(False), Recipe(model="m"))


def test_every_group_follows_the_schedule_from_its_own_rate() -> None:
    optimizer = create_optimizer(Net(), Recipe(model="m", lr=0.4, backbone_lr=0.2))
    for factor in (0.5, 0.25):
        set_learning_rate(optimizer, factor)
        assert sorted(group["lr"] for group in optimizer.param_groups) == [0.2 * factor, 0.4 * factor]


@pytest.mark.parametrize(
    ("norm", "changes", "frozen", "warned"),
    [
        (nn.LayerNorm, {"backbone_lr": 1e-3}, False, True),
        (nn.LayerNorm, {"lr": 1e-3}, False, True),  # of which the backbone takes its rate
        (nn.LayerNorm, {"backbone_lr": 1e-4}, False, False),
        (nn.LayerNorm, {"backbone_lr": 1e-3}, True, False),
        (nn.LayerNorm, {"optimizer": "sgd", "lr": 1e-2}, False, False),
        (nn.BatchNorm2d, {"backbone_lr": 1e-3}, False, False),
    ],
)
def test_a_rate_that_ruins_layer_norm_is_said(
    norm: type[nn.Module], changes: dict[str, Any], frozen: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net()
    net.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4))
    net.backbone.requires_grad_(not frozen)
    warn_of_high_rate(net, Recipe(model="m", **{"optimizer": "adamw", **changes}))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
