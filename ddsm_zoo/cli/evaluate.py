"""``evaluate``: the scores of a model, of two models, or of a folder of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsm_zoo.cli.app import DataOption, DeviceOption, JsonOption, app
from ddsm_zoo.console import check_folder, check_output, percent, print_lines, print_table, progress_bar, report

if TYPE_CHECKING:
    from ddsm_zoo.evaluation import Evaluation, Request

COMPARISON_DRAWS = 1000


@app.command()
def evaluate(
    data: DataOption,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="A name of `ddsm-zoo list`, hf-hub:ORG/REPO or local-dir:PATH.", metavar="NAME"
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="In place of --model: what model B scores more than A, with intervals.", metavar="A B"),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="In place of --model: a folder with NAME.png for each image.", metavar="DIR"),
    ] = None,
    split: Annotated[str, typer.Option(help="The split to score on.")] = "val",
    protocol: Annotated[
        str,
        typer.Option(
            help="whole, flip, sliding, multi_scale, sliding_multi_scale or a TOML file.", metavar="NAME|FILE"
        ),
    ] = "whole",
    boundary: Annotated[bool, typer.Option("--boundary", help="Boundary F-score and Boundary IoU too.")] = False,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Draws for 95 % confidence intervals over images.", metavar="K")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for scores.json and pictures.", metavar="DIR")
    ] = None,
    worst: Annotated[
        int, typer.Option(min=0, help="Pictures of the N images of lowest mIoU, in --out.", metavar="N")
    ] = 0,
    submission: Annotated[
        Path | None, typer.Option(help="Folder for label ids as Cityscapes' server takes them.", metavar="DIR")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one size that are predicted together.")] = 1,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Score a model: mIoU and IoU of each class, at the labels' own resolution. docs/evaluation.md defines each number.

    ddsm-zoo evaluate --model uper_ddsm_lite0_camvid --data camvid:data/camvid --boundary --bootstrap 1000

    ddsm-zoo evaluate --compare local-dir:runs/a/best local-dir:runs/b/best --data camvid:data/camvid --json gain.json

    ddsm-zoo evaluate --model NAME --data cityscapes:data/cityscapes --split test --submission upload
    """
    if sum(source is not None for source in (model, compare, predictions)) != 1:
        raise ValueError("expected exactly one of --model NAME, --compare A B and --predictions DIR")
    if worst and out is None:
        raise ValueError("--worst draws pictures, expected --out DIR to put them in")
    if (compare and (out or submission)) or (predictions and submission):
        raise ValueError("--out is for one evaluation and --submission for one --model, expected them without others")
    check_output(json)
    for folder in (out, submission):
        if folder is not None:
            check_folder(folder)
    from ddsm_zoo.engine.processes import joined
    from ddsm_zoo.evaluation import Request

    request = Request(
        data=data, split=split, protocol=protocol, boundary=boundary, batch_size=batch_size, device=device
    )
    with joined() as reporting:
        if compare:
            pair = [_score(name, None, request, reporting, None) for name in compare]
        else:
            evaluation = _score(model, predictions, request, reporting, submission)
    if not reporting:
        return
    if compare:
        _report_gain(compare, pair[0], pair[1], bootstrap or COMPARISON_DRAWS, json)
        return
    figures = evaluation.figures(bootstrap)
    if worst:
        figures["worst"] = evaluation.worst(worst)
    report(figures, json)
    if out is not None:
        report(figures, str(out / "scores.json"))
        evaluation.write_pictures(out, worst)
    if json != "-":
        _print_scores(f"{model or predictions} on {data} {split}", figures)
        written = [f"{what} in {folder}" for what, folder in (("pictures", out), ("label ids", submission)) if folder]
        print_lines(written)


def _score(
    model: str | None, predictions: Path | None, request: Request, reporting: bool, submission: Path | None
) -> Evaluation:
    from ddsm_zoo.evaluation import score_model, score_predictions

    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=None, visible=reporting)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if predictions is not None:
            return score_predictions(predictions, request, show)
        assert model is not None
        return score_model(model, request, show, submission)


def _print_scores(title: str, figures: Mapping[str, Any]) -> None:
    columns = {"IoU %": "iou", "boundary F %": "boundary_f_by_class", "boundary IoU %": "boundary_iou_by_class"}
    shown = {head: figures[key] for head, key in columns.items() if key in figures}
    intervals = figures.get("intervals", {})
    head = ("class", *shown, *(["IoU 95 %"] if intervals else []))
    rows = []
    for name in figures["iou"]:
        cells = [percent(values[name]) for values in shown.values()]
        rows.append((name, *cells, *([_span(intervals["iou"][name])] if intervals else [])))
    print_table(f"{title}, {figures['count']} images", head, rows)
    means = {
        "mIoU": "miou",
        "pixel accuracy": "pixel_accuracy",
        "mean accuracy": "mean_accuracy",
        "mean category IoU": "mean_category_iou",
        "mean iIoU": "mean_iiou",
        "mean category iIoU": "mean_category_iiou",
        "Boundary IoU": "boundary_iou",
    }
    scores = [(name, figures[key], intervals.get(key)) for name, key in means.items() if key in figures]
    for name, key, values in _boundary_means(figures):
        scores.append((name, values, intervals.get(key)))
    means_head = ("", "%", *(["95 %"] if intervals else []))
    print_table(
        "", means_head, [(name, percent(value), _span(span))[: len(means_head)] for name, value, span in scores]
    )
    if figures["never_occurs"]:
        print_lines([f"never occurred, left out of the mean: {', '.join(figures['never_occurs'])}"])


def _boundary_means(figures: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Title, key of the interval, where there is one, and value of each mean boundary F-score."""
    if "boundary_f" not in figures:
        return []
    variants = {"boundary F": figures["boundary_f"], "boundary F, present only": figures["boundary_f"]["present_only"]}
    return [
        (f"{variant} {f'at {at} px' if at != 'mean' else 'mean'}", key if at == "mean" else "", scores[at])
        for (variant, scores), key in zip(variants.items(), ("boundary_f", "boundary_f_present_only"), strict=True)
        for at in scores
        if at != "present_only"
    ]


def _report_gain(names: tuple[str, str], first: Evaluation, second: Evaluation, draws: int, json: str | None) -> None:
    gain = second.gain_over(first, draws)
    figures = {"a": first.figures(), "b": second.figures()}
    report({**figures, "gain": gain}, json)
    if json == "-":
        return
    spans = gain["intervals"]
    rows: list[tuple[str, ...]] = [
        (name, percent(figures["a"]["iou"][name]), percent(figures["b"]["iou"][name]), percent(value), _span(span))
        for (name, value), span in zip(gain["iou"].items(), spans["iou"].values(), strict=True)
    ]
    for key in ("miou", "boundary_iou"):
        if key in gain:
            values = (percent(figures[side][key]) for side in "ab")
            rows.append((key, *values, percent(gain[key]), _span(spans[key])))
    for key, value in gain.items():
        if key.startswith("boundary_f"):
            rows.append((key, "", "", percent(value), _span(spans[key])))
    title = f"A {names[0]}, B {names[1]}, {figures['a']['count']} images"
    print_table(title, ("class", "A IoU %", "B IoU %", "B - A", "95 %"), rows)


def _span(limits: list[float] | None) -> str:
    return f"{percent(limits[0])} to {percent(limits[1])}" if limits else ""
