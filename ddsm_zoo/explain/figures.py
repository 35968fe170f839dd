"""Draw explanations and comparisons with matplotlib, as in Figs. 4 and 1 of the paper."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ddsm_zoo.errors import ArgumentError, PackageError
from ddsm_zoo.explain.explain import Comparison, Explanation, Floats, Level
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.visualize import colorize, error_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".webp")


def draw_explanation(explanation: Explanation) -> Figure:
    """Draw the paper's Fig. 4, one row per module: taps, input features and output features.

    Args:
        explanation: Result of `explain`.

    Raises:
        LookupError: The package matplotlib is not installed.
    """
    image, levels = explanation.result.image, explanation.levels
    titles = ["(a) input", "(b) sampled positions", "(c) high", "(d) low", "(e) S"]
    if any(level.both is not None for level in levels):
        titles.append("(f) S + K")
    figure, axes = _panels(len(levels), len(titles), image, 2.6)
    figure.suptitle(f"What DDSM samples for the pixel {explanation.at[0]},{explanation.at[1]}: {explanation.label}")
    height, width = explanation.size
    for row, level in zip(axes, levels, strict=True):
        window = _window(level, image)
        _draw_input(row[0], image, window)
        row[0].set_ylabel(f"$\\tilde{{x}}_{level.stage}$, stride {2**level.stage}")
        _draw_taps(row[1], image, level, window)
        features = [values for values in (level.high, level.low, level.spatial, level.both) if values is not None]
        for panel, values in zip(row[2:], features, strict=True):
            panel.imshow(principal_colors(values), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            panel.set(xlim=(-0.5, image.width - 0.5), ylim=(image.height - 0.5, -0.5))
        for panel in (row[0], *row[2:]):
            panel.plot(*explanation.at, marker="+", color="blue", markersize=9, markeredgewidth=1.5)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
    return figure


def draw_comparison(comparison: Comparison) -> Figure:
    """Draw the paper's Fig. 1: input and labels, both predictions, and the errors of each.

    Args:
        comparison: Result of `compare`.

    Raises:
        LookupError: The package matplotlib is not installed.
    """
    labels, results, wrong = comparison.labels, comparison.results, comparison.wrong()
    image = next(iter(results.values())).image
    panels: list[tuple[str, Image.Image]] = [("input", image), ("labels", colorize(comparison.target, labels))]
    panels += [(name, result.color()) for name, result in results.items()]
    panels += [
        (f"errors: {wrong[name]:.2%}", error_map(result.mask, comparison.target, labels))
        for name, result in results.items()
    ]
    figure, axes = _panels(3, 2, image, 3.6)
    from matplotlib.patches import Patch

    for letter, panel, (title, picture) in zip("abcdef", axes.flat, panels, strict=True):
        panel.imshow(picture)
        panel.set_title(f"({letter}) {title}", fontsize="small")
    seen = np.concatenate([comparison.target.ravel(), *(result.mask.ravel() for result in results.values())])
    present = [index for index in np.unique(seen).tolist() if 0 <= index < len(labels)]
    swatches = [Patch(color="#{:02x}{:02x}{:02x}".format(*labels.palette[i]), label=labels.names[i]) for i in present]
    figure.legend(handles=swatches, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the file's suffix.

    Args:
        figure: Figure to write.
        path: Target file, with one of the suffixes in `FORMATS`.

    Raises:
        ValueError: The suffix is unknown.
        OutputError: The file cannot be written.
    """
    check_format(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for a file whose suffix is not a figure format."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ArgumentError(
            f"{os.fspath(path)} has no format of a figure, expected a name ending in {', '.join(FORMATS)}",
            kind="file-suffix",
            path=path,
            expected=tuple(FORMATS),
        )


def principal_colors(features: Floats) -> Floats:
    """Convert features (C, h, w) to a picture (h, w, 3) in 0..1: three principal components as red, green and blue.

    The middle 96 % of each component fill the range.
    """
    channels, height, width = features.shape
    points = features.reshape(channels, -1).astype(np.float64).T
    points = points - points.mean(0)
    _, directions = np.linalg.eigh(points.T @ points)  # in order of rising eigenvalue
    main = directions[:, ::-1][:, :3]
    main = main * np.sign(main[np.abs(main).argmax(0), np.arange(main.shape[1])])  # eigenvectors have no sign
    components = np.zeros((height * width, 3))
    components[:, : main.shape[1]] = points @ main
    low, high = np.percentile(components, (2, 98), axis=0)
    colors: Floats = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1).astype(np.float32)
    return colors.reshape(height, width, 3)


def _panels(rows: int, columns: int, image: Image.Image, side: float) -> tuple[Figure, Any]:
    """Create a figure of panels (rows, columns) in the image's proportions, ``side`` inches long, without ticks."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PackageError.needed("figures need", "matplotlib", "explain") from error
    longest = max(image.size)
    width, height = columns * side * image.width / longest, rows * side * image.height / longest
    figure = Figure(figsize=(max(width, 4) + 0.6, max(height, 2) + 0.8), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    return figure, axes


def _window(level: Level, image: Image.Image) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the part of the image to show: all taps, in the image's proportions."""
    away = np.abs(level.positions - np.asarray(level.center)).max(0)
    reach = max(*(1.2 * away / (image.width, image.height)), 3 * level.pitch / min(image.size))
    half_width, half_height = reach * image.width, reach * image.height
    x, y = level.center
    return x - half_width, y - half_height, 2 * half_width, 2 * half_height


def _draw_input(panel: Axes, image: Image.Image, window: tuple[float, float, float, float]) -> None:
    from matplotlib.patches import Rectangle

    left, top, width, height = window
    panel.imshow(image)
    panel.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="white", linewidth=1.2))


def _draw_taps(panel: Axes, image: Image.Image, level: Level, window: tuple[float, float, float, float]) -> None:
    """Draw the taps and the pixel's cell.

    Each tap is a cross in a disc whose area is its affinity. The largest affinities are written in per cent.
    """
    from matplotlib.patches import Rectangle

    panel.imshow(image, alpha=0.7)
    x, y = level.center
    pitch = level.pitch
    panel.add_patch(Rectangle((x - pitch / 2, y - pitch / 2), pitch, pitch, fill=False, edgecolor="blue"))
    panel.plot(x, y, marker="+", color="blue", markersize=12, markeredgewidth=2)
    across, down = level.positions.T
    panel.scatter(across, down, s=900 * level.affinities, color="red", alpha=0.35, linewidths=0)
    panel.scatter(across, down, s=28, color="red", marker="x", linewidths=1.2)
    main = level.affinities.argsort()[::-1][:5]
    for tap in main[level.affinities[main] > 0.005]:
        where = (float(across[tap]), float(down[tap]))
        text = panel.annotate(f"{level.affinities[tap]:.0%}", where, (4, 4), textcoords="offset points", fontsize=7)
        text.set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.8})
    left, top, width, height = window
    panel.set(xlim=(left, left + width), ylim=(top + height, top))
