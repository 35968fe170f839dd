"""The card's front matter is YAML for every text that a config may hold; the Hub's own parser reads it back."""

from __future__ import annotations

import dataclasses

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.hub.config_file import Manifest
from ddsm_zoo.hub.model_card import render_card
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises
from tests.support.tiny_weights import WEIGHTS

# what no config may hold: control characters, changes of direction, and what is no character
CHARACTERS = st.characters(
    exclude_categories=["Cc", "Cs", "Zl", "Zp"],
    exclude_characters="\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffe\uffff",
)
TRICKY = ["\U0001f332", "it's", 'a "b"', "a: b", "- a", "# a", "---", "null", "1e3", "[a]", "{a}", "a\\b", "`a`", "!a"]
TEXT = st.text(CHARACTERS, min_size=1, max_size=12) | st.sampled_from(TRICKY)
FIGURE = st.floats(0, 100)


def described(names: tuple[str, ...], **weights: object) -> Manifest:
    labels = LabelSpace.from_names(names)
    return Manifest(
        architecture="uper_tiny",
        num_classes=len(names),
        label_names=names,
        model_args=ModelConfig(decoder="uper", backbone="test_resnet.r160_in1k", num_classes=len(names)),
        pretrained_cfg=dataclasses.replace(WEIGHTS, labels=labels, **weights),
    )


def test_the_card_says_how_many_taps_of_each_sampler_read_the_map() -> None:
    card = render_card(described(("a", "b"), taps_on_map={"decoder.fusions.0.channel": 0.034}), "uper_tiny")
    assert "decoder.fusions.0.channel 3%" in card
    assert "taps" not in render_card(described(("a", "b")), "uper_tiny").lower()


@given(st.lists(TEXT, min_size=1, max_size=3, unique=True), TEXT, TEXT, TEXT, st.dictionaries(TEXT, FIGURE, max_size=3))
def test_the_front_matter_comes_back(
    names: list[str], dataset: str, license: str, recipe: str, metrics: dict[str, float]
) -> None:
    manifest = described(tuple(names), dataset=dataset, license=license, recipe=recipe, metrics=metrics)
    text = render_card(manifest, "hf-hub:someone/model")
    card = ModelCard(text).data
    assert (card["license"], card["library_name"]) == (license, "ddsm-zoo")
    assert f"Trained on: {dataset}." in text
    found = {result.metric_name: result.metric_value for result in card.eval_results or []}
    assert found == pytest.approx(metrics, abs=6e-5)
    assert f"Classes: {', '.join(names)}." in text


def test_a_fine_tuned_model_is_not_called_like_its_start() -> None:
    """Not in its title, and not among the results that the Hub compares."""
    tuned = described(("crack", "road"), start="uper_ddsm_lite0_camvid", dataset="my: cracks", metrics={"miou": 50.0})
    text = render_card(tuned, "hf-hub:someone/model")
    title = "my: cracks: uper on test_resnet.r160_in1k"
    assert ModelCard(text).data.model_name == title
    assert f"\n# {title}\n" in text
    ours = render_card(described(("road",), metrics={"miou": 50.0}), "uper_tiny")
    assert ModelCard(ours).data.model_name == "uper_tiny"


def test_the_card_of_a_single_class_has_the_threshold() -> None:
    card = render_card(described(("crack",), threshold=0.35), "local-dir:PATH")
    assert "into 1 class:" in card
    assert "exceeds the threshold 0.35" in card
    assert "threshold" not in render_card(described(("a", "b")), "local-dir:PATH")


def test_without_scores_there_is_no_model_index() -> None:
    front = render_card(described(("road",), metrics={}), "uper_tiny").split("---")[1]
    assert "license: cc0-1.0" in front
    assert "model" not in front


@pytest.mark.parametrize(
    ("dataset", "identifier"),
    [
        ("camvid", "camvid"),
        ("someone/street-scenes", "someone/street-scenes"),
        ("My Photos (2)", "My-Photos-2"),
        ("a/b/c", "a-b-c"),
        ("\u8857", "unknown"),
    ],
)
def test_a_data_set_is_named_as_the_hub_has_it(dataset: str, identifier: str) -> None:
    """One that is named otherwise makes the Hub refuse the card."""
    card = ModelCard(render_card(described(("road",), dataset=dataset), "hf-hub:someone/model")).data
    assert card.datasets == [identifier]
    assert [(found.dataset_type, found.dataset_name) for found in card.eval_results or []] == [(identifier, dataset)]


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2J", "a\u2028b", "a\u202eb", "a\uffffb"])
def test_what_no_card_could_hold_is_refused(text: str) -> None:
    for change in ({"dataset": text}, {"license": text}, {"recipe": text}, {"metrics": {text: 1.0}}):
        with raises(ConfigError, kind="config", got=text) as error:
            described(("road",), **change)
        assert str(error.value).isprintable()
    with raises(ConfigError, kind="config", got=text):
        described((text,))
