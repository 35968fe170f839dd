"""Command ``evaluate``: score a model, two models or a folder of predictions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ddsm_zoo.cli.app import DataOption, DeviceOption, JsonOption, PrecisionOption, ThresholdOption, app
from ddsm_zoo.cli.console import check_folder, check_output, percent, print_lines, print_table, progress_bar, report
from ddsm_zoo.errors import ArgumentError

if TYPE_CHECKING:
    from ddsm_zoo.evaluation.result import Evaluation
    from ddsm_zoo.inference.precision import Precision

COMPARISON_DRAWS = 1000
# Keys of the means that have an interval
COMPARED = {
    "miou": "mIoU",
    "boundary_f": "boundary F mean",
    "boundary_f_present_only": "boundary F mean, present only",
    "boundary_iou": "Boundary IoU",
}


@app.command()
def evaluate(
    data: DataOption,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model: a name from `ddsm-zoo list`, hf-hub:ORG/REPO or local-dir:PATH.",
            metavar="NAME",
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Instead of --model: compare two models; reports B - A with intervals.", metavar="A B"),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Instead of --model: score a folder with NAME.png for each image.", metavar="DIR"),
    ] = None,
    class_ids: Annotated[
        bool, typer.Option("--class-ids", help="The files of --predictions store class ids (0 is the first class).")
    ] = False,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    protocol: Annotated[
        str,
        typer.Option(
            help="Inference mode: whole, flip, sliding, multi_scale, sliding_multi_scale or a TOML file.",
            metavar="NAME|FILE",
        ),
    ] = "whole",
    boundary: Annotated[
        bool, typer.Option("--boundary", help="Also compute Boundary F-score and Boundary IoU.")
    ] = False,
    boundary_radii: Annotated[
        str | None,
        typer.Option(
            help="F-score radii in pixels, such as 1,2,3. Default: the published fractions of the diagonal.",
            metavar="PX,...",
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Number of bootstrap samples for 95 % confidence intervals.", metavar="K")
    ] = 0,
    bootstrap_by: Annotated[
        str | None,
        typer.Option(
            help="Unit that --bootstrap resamples. For video frames: sequences, or blocks of N consecutive images.",
            metavar="image|sequence|block:N",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for scores.json and figures.", metavar="DIR")
    ] = None,
    worst: Annotated[
        int, typer.Option(min=0, help="Draw the N images with the lowest mIoU, in --out.", metavar="N")
    ] = 0,
    submission: Annotated[
        Path | None,
        typer.Option(help="Folder for predictions in the format of the benchmark server.", metavar="DIR"),
    ] = None,
    threshold: ThresholdOption = None,
    precision: PrecisionOption = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images of the same size to predict together.")] = 1,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Score a model, compare two models, or score a folder of predictions.

    Reports mIoU and the IoU of each class at the resolution of the labels. The
    documentation's page Evaluate defines each metric.

    Examples:

    ddsm-zoo evaluate --model uper_ddsm_lite0_camvid --data camvid:data/camvid --boundary --bootstrap 1000

    ddsm-zoo evaluate --compare local-dir:runs/a/best local-dir:runs/b/best --data camvid:data/camvid --json gain.json

    ddsm-zoo evaluate --model NAME --data cityscapes:data/cityscapes --split test --submission upload
    """
    for conflict, message in (
        (
            sum(source is not None for source in (model, compare, predictions)) != 1,
            "expected exactly one of --model NAME, --compare A B and --predictions DIR",
        ),
        (worst and out is None, "--worst draws pictures, expected --out DIR to put them in"),
        (
            bootstrap_by and not (bootstrap or compare),
            "--bootstrap-by says what --bootstrap draws, expected --bootstrap K or --compare with it",
        ),
        (class_ids and predictions is None, "--class-ids says what files hold, expected --predictions DIR"),
        (
            predictions and protocol != "whole",
            "--protocol says how a model is run, expected --predictions DIR without it",
        ),
        (
            predictions and precision != "fp32",
            "--precision says how a model computes, expected --predictions DIR without it",
        ),
        (
            predictions and threshold is not None,
            "--threshold turns a model's probabilities into ids, expected --predictions DIR without it",
        ),
        (
            (compare and (out or submission)) or (predictions and submission),
            "--out is for one evaluation and --submission for one --model, expected them without others",
        ),
    ):
        if conflict:
            raise ArgumentError(message)
    check_output(json)
    for folder in (out, submission):
        if folder is not None:
            check_folder(folder)
    from ddsm_zoo.evaluation.evaluate import Request, score_model, score_predictions
    from ddsm_zoo.utils.distributed import init_distributed

    request = Request(
        data=data,
        split=split,
        protocol=protocol,
        boundary=boundary,
        boundary_radii=_radii(boundary_radii),
        bootstrap_by=bootstrap_by or "image",
        batch_size=batch_size,
        device=device,
        threshold=threshold,
        precision=cast("Precision", precision),
    )
    scores: list[Callable[..., Evaluation]]
    if predictions:
        scores = [partial(score_predictions, predictions, request, class_ids=class_ids)]
    else:
        names = [name for name in (model, *(compare or ())) if name is not None]
        scores = [
            partial(score_model, name, request, submission=submission, checked=number > 0)
            for number, name in enumerate(names)
        ]
    began = time.perf_counter()
    with init_distributed() as reporting:
        if not reporting:  # only the first process reports the check of the data
            logging.getLogger("ddsm_zoo").setLevel(logging.ERROR)
        evaluations = [_watched(score, reporting) for score in scores]
    if not reporting:
        return
    title = f"{data} {split}, {evaluations[0].count} images in {time.perf_counter() - began:.1f} s"
    if compare:
        first, second = evaluations
        title = f"A {compare[0]}, B {compare[1]} on {title}"
        _report_gain(title, first, second, bootstrap or COMPARISON_DRAWS, json)
    else:
        _report_scores(f"{model or predictions} on {title}", evaluations[0], bootstrap, worst, out, json)
        if submission and json != "-":
            print_lines([f"label ids in {submission}"])


def _radii(given: str | None) -> tuple[int, ...] | None:
    """Parse whole numbers separated by commas."""
    if given is None:
        return None
    words = [word.strip() for word in given.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ArgumentError(
            f"--boundary-radii is {given!r}, expected whole numbers of pixels such as 1,2,3; "
            "without it, radii are the published shares of the image's diagonal",
            name="--boundary-radii",
            got=given,
            expected="whole numbers of pixels",
        )
    return tuple(map(int, words))


def _watched(score: Callable[..., Evaluation], visible: bool) -> Evaluation:
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=None, visible=visible)
        return score(progress=lambda done, total: bar.update(task, completed=done, total=total))


def _report_scores(
    title: str, evaluation: Evaluation, bootstrap: int, worst: int, out: Path | None, json: str | None
) -> None:
    figures = evaluation.figures(bootstrap)
    if worst:
        figures["worst"] = evaluation.worst(worst)
    report(figures, json)
    if out is not None:
        report(figures, str(out / "scores.json"))
    if out is not None and evaluation.labeled:
        evaluation.write_pictures(out, worst)
    if json == "-":
        return
    if not evaluation.labeled:
        print_lines([f"{title}: without labels there is nothing to score"])
        return
    _print_scores(title, figures, evaluation)
    if out is not None:
        print_lines([f"pictures in {out}"])


def _print_scores(title: str, figures: Mapping[str, Any], evaluation: Evaluation) -> None:
    """Print a table of the classes and one of the means, with the numbers among the data set's extra scores."""
    columns = {"IoU %": "iou", "boundary F %": "boundary_f_by_class", "boundary IoU %": "boundary_iou_by_class"}
    shown = {head: figures[key] for head, key in columns.items() if key in figures}
    intervals = figures.get("intervals", {})
    head = ("class", *shown, *(["IoU 95 %"] if intervals else []))
    rows = []
    for name in figures["iou"]:
        cells = [percent(values[name]) for values in shown.values()]
        rows.append((name, *cells, *([_span(intervals["iou"][name])] if intervals else [])))
    print_table(title, head, rows)
    means = {
        evaluation.headline: "miou",
        "Dice": "dice",
        "precision": "precision",
        "recall": "recall",
        "pixel accuracy": "pixel_accuracy",
        **({} if "recall" in figures else {"mean accuracy": "mean_accuracy"}),  # for a single class, the same
        **{_score_name(key): key for key, score in evaluation.extra.items() if isinstance(score, float)},
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
    if intervals:
        print_lines([intervals["note"]])


def _score_name(key: str) -> str:
    """Format a key for reading: ``mean_category_iou`` becomes mean category IoU."""
    words = {"iou": "IoU", "iiou": "iIoU", "miou": "mIoU"}
    return " ".join(words.get(word, word) for word in key.split("_"))


def _boundary_means(figures: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Return title, key of the interval (if there is one) and value of each mean boundary F-score."""
    if "boundary_f" not in figures:
        return []
    variants = {"boundary F": figures["boundary_f"], "boundary F, present only": figures["boundary_f"]["present_only"]}
    radii = {at: f"at {_radius(at, pixels)}" for at, pixels in figures["boundary_f_pixels"].items()}
    return [
        (f"{variant} {radii.get(at, 'mean')}", key if at == "mean" else "", scores[at])
        for (variant, scores), key in zip(variants.items(), ("boundary_f", "boundary_f_present_only"), strict=True)
        for at in (*radii, "mean")
    ]


def _radius(measure: float, pixels: Sequence[int]) -> str:
    """Format a radius in pixels, from the smallest to the largest image, and the share of the diagonal if it is one."""
    span = " to ".join(str(radius) for radius in sorted({pixels[0], pixels[-1]}))
    return f"{span} px" if isinstance(measure, int) else f"{span} px ({measure:g} diag.)"


def _report_gain(title: str, first: Evaluation, second: Evaluation, draws: int, json: str | None) -> None:
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
    means = {side: _means(figures[side]) for side in "ab"}
    for key, name in COMPARED.items():
        if key in gain:
            name = second.headline if key == "miou" else name
            rows.append((name, *(percent(means[side][key]) for side in "ab"), percent(gain[key]), _span(spans[key])))
    print_table(title, ("IoU", "A %", "B %", "B - A", "95 %"), rows)
    print_lines([spans["note"]])


def _means(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores that COMPARED names."""
    boundary_f = figures.get("boundary_f", {})
    nested = {"boundary_f": boundary_f, "boundary_f_present_only": boundary_f.get("present_only", {})}
    return {**figures, **{key: scores["mean"] for key, scores in nested.items() if scores}}


def _span(limits: list[float] | None) -> str:
    return f"{percent(limits[0])} to {percent(limits[1])}" if limits else ""
