"""Command ``export``: write a model to a file that runs without this package."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ddsm_zoo.cli.app import JsonOption, ThresholdOption, app
from ddsm_zoo.cli.console import check_output, percent, print_lines, print_table, progress_bar, report
from ddsm_zoo.errors import ArgumentError


class Format(str, Enum):
    onnx = "onnx"
    torch = "torch"


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model with weights: a name, hf-hub:ORG/REPO or local-dir:PATH.")],
    format: Annotated[Format, typer.Option(help="onnx for ONNX Runtime, torch for torch.export.load.")] = Format.onnx,
    size: Annotated[
        tuple[int, int] | None, typer.Option(help="Fixed image size.", metavar="H W", show_default=False)
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Accept images of any size (default).")] = False,
    with_preprocess: Annotated[
        bool, typer.Option("--with-preprocess", help="Take 8-bit RGB images (1, H, W, 3) and normalize inside.")
    ] = False,
    argmax: Annotated[
        bool, typer.Option("--argmax", help="Return the class of each pixel (uint8) instead of logits.")
    ] = False,
    threshold: ThresholdOption = None,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX only: 8-bit convolutions.")] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Images for comparison and calibration. Default: rendered ones.", metavar="DIR"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Score model and file on camvid:ROOT, folder:ROOT, ...", metavar="SPEC"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output file. Default: MODEL.onnx or MODEL.pt2.", metavar="FILE"),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Export a model as ONNX or as a torch.export program, and compare the file with the model.

    ONNX needs the extra export. The documentation's page Export shows how to serve the file with onnxruntime only.

    Examples:

    ddsm-zoo export uper_ddsm_lite0_camvid --with-preprocess --argmax -o street.onnx

    ddsm-zoo export local-dir:runs/mine/best --int8 --images mydata/images/train --data folder:mydata -o mine.onnx
    """
    if dynamic and size is not None:
        raise ArgumentError(f"got --dynamic and --size {size[0]} {size[1]}, expected one of them", kind="options")
    from ddsm_zoo.export.export import SUFFIX, ExportOptions
    from ddsm_zoo.export.export import export as export_model
    from ddsm_zoo.zoo.sources import look_up

    options = ExportOptions(
        format="onnx" if format is Format.onnx else "torch",
        size=size,
        preprocess=with_preprocess,
        argmax=argmax,
        threshold=threshold,
        int8=int8,
        images=images,
        data=data,
    )
    path = out or Path(f"{look_up(model).name}{SUFFIX[options.format]}")
    check_output(str(path))
    check_output(json)
    with progress_bar() as bar:
        task = bar.add_task("loading", total=None)
        figures = export_model(model, path, options, lambda doing: bar.update(task, description=doing))
    report(figures, json)
    if json != "-":
        show_export(figures)


def show_export(figures: dict[str, Any]) -> None:
    rows = [
        (
            " x ".join(map(str, row["size"])),
            "-" if row["difference"] is None else f"{row['difference']:.2g}",
            percent(row["argmax"]),
        )
        for row in figures["agreement"]
    ]
    print_table("the file beside the model", ("H x W", "largest difference of logits", "same class %"), rows)
    if "miou" in figures:
        scores = figures["miou"]
        print_lines([f"mIoU: {percent(scores['model'])} % the model, {percent(scores['file'])} % the file"])
    print_lines([f"{figures['file']}: {figures['bytes'] / 1e6:.1f} MB"])
