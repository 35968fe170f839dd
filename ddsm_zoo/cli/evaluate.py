"""``evaluate``: the scores of a model on labelled images."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from ddsm_zoo.cli.app import DataOption, DeviceOption, JsonOption, ModelOption, app
from ddsm_zoo.console import check_output, percent, print_lines, print_table, progress_bar, report


@app.command()
def evaluate(
    model: ModelOption,
    data: DataOption,
    split: Annotated[str, typer.Option(help="The split to score on.")] = "val",
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one size that are predicted together.")] = 1,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Score a model: mIoU and IoU of each class, at the labels' own resolution.

    ddsm-zoo evaluate --model uper_ddsm_lite0_camvid --data camvid:data/camvid --split val --json scores.json
    """
    check_output(json)
    from ddsm_zoo.predictor import evaluate

    with progress_bar() as progress:
        task = progress.add_task("evaluating", total=None)
        result = evaluate(
            model,
            data,
            split,
            device=device,
            batch_size=batch_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    report(result, json)
    if json == "-":
        return
    rows = [(name, percent(iou)) for name, iou in result["iou"].items()]
    means = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy"}
    rows += [(title, percent(result[key])) for title, key in means.items()]
    print_table(f"{model} on {data} {split}, {result['count']} images", ("class", "IoU %"), rows)
    if absent := [name for name, iou in result["iou"].items() if math.isnan(iou)]:
        print_lines([f"never occurred, left out of the mean: {', '.join(absent)}"])
