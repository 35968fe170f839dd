"""What is said about a pixel must be what the model computed there, and in the right place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo import Predictor
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.explain.explain import compare, explain, read_target
from ddsm_zoo.inference.tiling import MIN_SIDE
from ddsm_zoo.labels import CAMVID, LabelSpace
from ddsm_zoo.layers import DDSM
from tests.support.brute_force import bilinear
from tests.support.closeness import rounding_error
from tests.support.errors import raises
from tests.support.samplers import unsettled

AT = (75, 41)
NAMES = ("uper_ddsm_tiny", "uper_ddsm_s_tiny", "deeplabv3plus_ddsm_tiny")


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return Image.fromarray(render_scene(3, (96, 128))[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pixels", [9, 25])
def test_what_is_read_at_the_reported_places_makes_the_output_of_s(name: str, pixels: int, scene: Image.Image) -> None:
    """The value map is taken from the module, read by hand at the reported pixels, and summed by the affinities."""
    model = unsettled(name, pixels=pixels)
    levels = iter(explain(model, scene, AT).levels)
    for module in (module for module in model.modules() if isinstance(module, DDSM)):
        level = next(levels)
        affinity = module.spatial
        stride = 2**level.stage
        assert level.positions.shape == (pixels, 2)
        assert level.affinities.sum() == pytest.approx(1, abs=rounding_error(pixels, 1.0))
        low, high = (torch.from_numpy(features)[None] for features in (level.low, level.high))
        with torch.no_grad():
            value = affinity.project(low, high)[2]
            total = np.zeros(value.shape[1])
            for (x, y), strength, share in zip(level.positions, level.modulations, level.affinities, strict=True):
                row, column = (y + 0.5) / stride - 0.5, (x + 0.5) / stride - 0.5
                total += share * strength * bilinear(value[0].double().numpy(), row, column)
            expected = affinity.out(torch.from_numpy(total).float()[None, :, None, None])[0, :, 0, 0].numpy()
        found = level.spatial[:, AT[1] // stride, AT[0] // stride]
        assert found == pytest.approx(expected, abs=1e-4)
    assert next(levels, None) is None


def test_the_levels_go_from_coarse_to_fine_with_what_the_module_is_made_of(scene: Image.Image) -> None:
    explanation = explain(unsettled("uper_ddsm_tiny"), scene, AT)
    assert [level.stage for level in explanation.levels] == [4, 3, 2]
    for level in explanation.levels:
        stride = 2**level.stage
        assert level.low.shape[1:] == level.spatial.shape[1:] == (96 // stride, 128 // stride)
        assert level.high.shape[1:] == (48 // stride, 64 // stride)
        assert level.both is not None
    assert all(level.both is None for level in explain(unsettled("uper_ddsm_s_tiny"), scene, AT).levels)
    assert explanation.label == CAMVID.names[explanation.result.mask[AT[1], AT[0]]] or "class" in explanation.label
    plain = explanation.to_dict()
    assert plain["at"] == [75, 41]
    assert np.allclose(plain["levels"][2]["affinities"], explanation.levels[2].affinities)


@pytest.mark.parametrize("at", [(0, 0), (127, 95), (64, 32)])
def test_a_settled_sampler_reads_the_cells_around_the_pixel(at: tuple[int, int], scene: Image.Image) -> None:
    """A fresh model samples the plain grid: 3 x 3 cells around the one that holds the pixel, a stride apart."""
    levels = explain(ddsm_zoo.create_model("uper_ddsm_tiny"), scene, at).levels
    for level in levels:
        stride = 2**level.stage
        x, y = (place // stride * stride + (stride - 1) / 2 for place in at)
        assert level.center == pytest.approx((x, y))
        expected = [(x + dx * stride, y + dy * stride) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        assert level.positions == pytest.approx(np.array(expected))
        assert level.modulations == pytest.approx(0.5)


def test_cells_of_an_enlarged_image_are_smaller(scene: Image.Image) -> None:
    """The model sees 144 x 192 pixels, extended to 160 x 192, where the image has 96 x 128."""
    model = ddsm_zoo.create_model("uper_ddsm_tiny")
    prepared = dataclasses.replace(model.provenance.preprocess, min_size=(144, 192))
    model.provenance = dataclasses.replace(model.provenance, preprocess=prepared)
    explanation = explain(model, scene, (64, 32))
    assert explanation.size == pytest.approx((160 / 1.5, 128))
    for level in explanation.levels:
        assert level.low.shape[1:] == (160 // 2**level.stage, 192 // 2**level.stage)
        pitch = 2**level.stage / 1.5
        assert level.pitch == pytest.approx(pitch)
        x, y = (((place + 0.5) // pitch + 0.5) * pitch - 0.5 for place in (64, 32))
        assert level.center == pytest.approx((x, y))
        assert level.positions[0] == pytest.approx((x - pitch, y - pitch))


def test_the_model_is_left_as_it_was(scene: Image.Image) -> None:
    predictor = Predictor(unsettled("uper_ddsm_tiny"))
    explain(predictor, scene, AT)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in predictor.model.modules()]
    assert not any(hooks)
    first, second = explain(predictor, np.asarray(scene), AT), explain(predictor, scene, AT)
    assert np.array_equal(first.levels[0].affinities, second.levels[0].affinities)


def test_a_model_in_bfloat16_and_one_that_cuts_tiles(scene: Image.Image) -> None:
    model = unsettled("uper_ddsm_tiny")
    full, half = (explain(Predictor(model, precision=precision), scene, AT) for precision in ("fp32", "bf16"))
    for one, other in zip(full.levels, half.levels, strict=True):
        assert one.positions == pytest.approx(other.positions, abs=2**one.stage)
    with raises(ValueError, kind="options", name="tile"):
        explain(Predictor(model, tile=MIN_SIDE), scene.resize((1200, 40)), (0, 0))


@pytest.mark.parametrize("name", ["uper_tiny", "uper_dcn_tiny", "uper_ddsm_c_tiny"])
def test_models_that_sample_no_pixels(name: str, scene: Image.Image) -> None:
    with raises(ValueError, kind="no-sampling", name=name):
        explain(ddsm_zoo.create_model(name), scene, AT)


@pytest.mark.parametrize("at", [(-1, 0), (128, 0), (0, 96)])
def test_pixels_outside_the_image(at: tuple[int, int], scene: Image.Image) -> None:
    with raises(ValueError, kind="pixel-outside", got=at):
        explain(ddsm_zoo.create_model("uper_ddsm_tiny"), scene, at)


def test_two_models_side_by_side(scene: Image.Image) -> None:
    target = render_scene(3, (96, 128))[1]
    model = unsettled("uper_ddsm_tiny", labels=CAMVID)
    comparison = compare({"ours": model, "again": Predictor(model)}, scene, target)
    known = target != CAMVID.ignore_index
    assert list(comparison.results) == ["ours", "again"]
    for name, result in comparison.results.items():
        assert comparison.wrong()[name] == pytest.approx((result.mask != target)[known].mean())
    with raises(ValueError, kind="array", got=(96, 128), expected=(50, 128)):
        compare({"ours": model, "again": model}, scene, target[:50])
    with raises(ValueError, kind="classes-differ", got={"ours": 11, "other": 3}):
        compare({"ours": model, "other": ddsm_zoo.create_model("uper_tiny", num_classes=3)}, scene, target)


def test_targets_are_read_as_ids_or_colors(tmp_path: Path) -> None:
    labels = LabelSpace(names=("a", "b"), palette=((9, 9, 9), (200, 0, 0)))
    Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).save(tmp_path / "ids.png")
    colors = np.array([[[9, 9, 9], [200, 0, 0]], [[0, 0, 0], [0, 0, 0]]], np.uint8)
    Image.fromarray(colors).save(tmp_path / "colors.png")
    for name in ("ids.png", "colors.png"):
        assert read_target(tmp_path / name, labels).tolist() == [[0, 1], [255, 255]]
    Image.fromarray(np.array([[3]], np.uint8)).save(tmp_path / "other.png")
    with raises(DatasetError, kind="unknown-id", path="other.png"):
        read_target(tmp_path / "other.png", labels)
