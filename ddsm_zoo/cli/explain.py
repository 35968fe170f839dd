"""Command ``explain``: sampled attention at a pixel, or the errors of two models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ddsm_zoo.cli.app import DeviceOption, JsonOption, ModelOption, app
from ddsm_zoo.cli.console import check_folder, check_output, print_lines, report
from ddsm_zoo.cli.predict import DEFAULT_MODEL
from ddsm_zoo.errors import ArgumentError


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    at: Annotated[str | None, typer.Option(help="Pixel to explain, counted from the top left.", metavar="X,Y")] = None,
    model: ModelOption = DEFAULT_MODEL,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Instead of --at: show the errors of two models.", metavar="A B"),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="For --compare: the label mask, as class ids or colors.", metavar="FILE")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output figure: .png, .pdf, .svg, .jpg or .webp.", metavar="FILE")
    ] = Path("explanation.png"),
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Draw the positions, affinities and features that DDSM samples at a pixel (the paper's Fig. 4).

    With --compare, draw the predictions and errors of two models (Fig. 1). The
    documentation's page Explain describes both.

    Examples:

    ddsm-zoo explain street.jpg --at 312,180 -o why.png

    ddsm-zoo explain street.jpg --compare local-dir:runs/plain/best local-dir:runs/ddsm/best --mask street_mask.png
    """
    if (at is None) == (compare is None):
        raise ArgumentError("expected one of --at X,Y and --compare A B", kind="options")
    if (compare is None) != (mask is None):
        raise ArgumentError("--compare A B and --mask FILE belong together, got one of them", kind="options")
    pixel = None if at is None else parse_pixel(at)
    check_output(json)
    check_folder(out.parent)
    from ddsm_zoo.explain import explain as explanation
    from ddsm_zoo.explain import figures
    from ddsm_zoo.inference.predictor import Predictor

    figures.check_format(out)
    if compare is not None and mask is not None:
        if compare[0] == compare[1]:
            raise ArgumentError(
                f"--compare got {compare[0]} twice, expected two models", kind="options", got=compare[0]
            )
        models = {name: Predictor(name, device) for name in compare}
        target = explanation.read_target(mask, models[compare[0]].labels)
        comparison = explanation.compare(models, image, target)
        wrong = comparison.wrong()
        figures.save_figure(figures.draw_comparison(comparison), out)
        report({"image": str(image), "mask": str(mask), "wrong": wrong}, json)
        lines = [f"{name}: {share:.2%} of the labeled pixels wrong" for name, share in wrong.items()]
    else:
        assert pixel is not None
        found = explanation.explain(Predictor(model, device), image, pixel)
        figures.save_figure(figures.draw_explanation(found), out)
        report({"model": model, "image": str(image), **found.to_dict()}, json)
        lines = [f"the pixel {pixel[0]},{pixel[1]} is {found.label}"]
        lines += [f"{name}: {share:.0%} of its taps read the map" for name, share in found.taps_on_map.items()]
    if json != "-":
        print_lines([*lines, str(out)])


def parse_pixel(text: str) -> tuple[int, int]:
    """Parse ``312,180`` as (x, y). Raises ValueError."""
    match = re.fullmatch(r"(\d{1,9}),\s?(\d{1,9})", text, flags=re.ASCII)
    if match is None:
        raise ArgumentError(
            f"--at is {text!r}, expected the pixel's column and row such as 312,180",
            name="--at",
            got=text,
            expected="column and row of the pixel",
        )
    return int(match[1]), int(match[2])
