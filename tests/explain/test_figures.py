"""Figures show the data that they are drawn from."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.explain.explain import compare, explain
from ddsm_zoo.explain.figures import draw_comparison, draw_explanation, principal_colors, save_figure
from ddsm_zoo.labels import CAMVID
from tests.support.closeness import rounding_error
from tests.support.errors import raises
from tests.support.samplers import unsettled

AT = (75, 41)


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return Image.fromarray(render_scene(3, (96, 128))[0])


@pytest.mark.parametrize(("name", "columns"), [("uper_ddsm_tiny", 6), ("uper_ddsm_s_tiny", 5)])
def test_the_figure_shows_each_module_with_its_taps(
    name: str, columns: int, scene: Image.Image, tmp_path: Path
) -> None:
    explanation = explain(unsettled(name), scene, AT)
    figure = draw_explanation(explanation)
    assert len(figure.axes) == 3 * columns
    for row, level in enumerate(explanation.levels):
        panel = figure.axes[row * columns + 1]
        discs = panel.collections[0]
        assert discs.get_offsets().data == pytest.approx(level.positions)
        assert discs.get_sizes() / discs.get_sizes().sum() == pytest.approx(
            level.affinities, rel=rounding_error(len(level.affinities), 1.0)
        )
        left, right = panel.get_xlim()
        assert left < level.positions[:, 0].min() <= level.positions[:, 0].max() < right
    save_figure(figure, tmp_path / "new" / "why.png")
    with Image.open(tmp_path / "new" / "why.png") as picture:
        assert min(picture.size) > 300
    with raises(ValueError, kind="file-suffix", path="why.txt"):
        save_figure(figure, tmp_path / "why.txt")


def test_the_comparison_shows_image_labels_predictions_and_errors(scene: Image.Image) -> None:
    target = render_scene(3, (96, 128))[1]
    model = unsettled("uper_ddsm_tiny", labels=CAMVID)
    comparison = compare({"ours": model, "again": model}, scene, target)
    panels = draw_comparison(comparison).axes
    assert len(panels) == 6
    shown = [panel.images[0].get_array() for panel in panels]
    assert np.array_equal(shown[0], np.asarray(scene))
    palette = np.array([*CAMVID.palette, *[(0, 0, 0)] * (256 - len(CAMVID))], np.uint8)
    assert np.array_equal(shown[1], palette[target])
    assert np.array_equal(shown[2], palette[comparison.results["ours"].mask])
    assert panels[4].get_title() == f"(e) errors: {comparison.wrong()['ours']:.2%}"


def test_without_matplotlib_the_error_names_the_extra(scene: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    explanation = explain(unsettled("uper_ddsm_tiny"), scene, AT)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with raises(LookupError, kind="missing-package", name="matplotlib", expected="pip install 'ddsm-zoo[explain]'"):
        draw_explanation(explanation)


def test_main_components_become_colors() -> None:
    """Three independent patterns of falling strength, mixed into seven channels, come back as red, green and blue."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:12, 0:15]
    patterns = np.stack([9.0 * (rows % 2), 4.0 * (columns % 2), 2.0 * (columns % 4 > 1)])
    mixing = np.linalg.qr(rng.normal(size=(7, 3)))[0]
    colors = principal_colors(np.einsum("cp,phw->chw", mixing, patterns).astype(np.float32))
    assert colors.shape == (12, 15, 3)
    for place, pattern in enumerate(patterns):
        assert abs(np.corrcoef(colors[..., place].ravel(), pattern.ravel())[0, 1]) > 0.99
    assert colors.min() == 0
    assert colors.max() == 1
    assert principal_colors(np.ones((2, 3, 4), np.float32)).shape == (3, 4, 3)
