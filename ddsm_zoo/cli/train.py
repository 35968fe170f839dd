"""Command ``train``: train a model from a recipe and data."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ddsm_zoo.cli.app import DataOption, JsonOption, app
from ddsm_zoo.cli.console import check_folder, check_output, print_lines, report, stderr, training_bar


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", "-r", help="Recipe: a name from `ddsm-zoo recipes`, or a path to a TOML file.", metavar="NAME"
        ),
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder of the run.", metavar="DIR")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model to train. Default: the recipe's.", metavar="NAME")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            help="Start from the model's segmentation weights, or from random ones. Default: ImageNet weights in the "
            "backbone.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in DIR.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs. Default: the recipe's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Data loader workers. Default: the recipe's.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a field of the recipe, as a TOML value. May be repeated.",
            metavar="FIELD=VALUE",
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs to DIR/tensorboard.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Train or fine-tune a model on the splits train and val of a data set.

    Ctrl-C saves the run, and --resume continues it. DIR/best is the model with the highest mIoU on val; use it as
    --model local-dir:DIR/best. DIR/val.png shows predictions on val, DIR/curve.png loss and mIoU.

    Examples:

    ddsm-zoo train --recipe finetune --data folder:mydata --out runs/mine --pretrained

    ddsm-zoo train -r finetune -d folder:mydata -o runs/rare --pretrained --set sampling=balanced

    To write your own recipe: ddsm-zoo recipes --copy finetune --to mine.toml, edit it, train with --recipe mine.toml
    """
    from ddsm_zoo.training.recipe import Recipe, parse_change

    given: dict[str, Any] = {"model": model, "epochs": epochs, "workers": workers}
    changes = {name: value for name, value in given.items() if value is not None}
    changes = {**dict(map(parse_change, change or ())), **changes}
    chosen = Recipe.load(recipe, changes)
    check_folder(out)
    check_output(json)
    from ddsm_zoo.training.run import train
    from ddsm_zoo.utils.distributed import init_distributed

    with init_distributed() as reporting, training_bar() if reporting else contextlib.nullcontext() as show:
        if not reporting:  # only the first process reports
            logging.getLogger("ddsm_zoo").setLevel(logging.ERROR)
        summary = train(
            recipe,
            data,
            out,
            pretrained=pretrained,
            changes=changes,
            resume=resume,
            progress=show,
            tensorboard=tensorboard,
        )
    if reporting:
        _report(summary, chosen.epochs, out, json)
    if summary["interrupted"]:
        raise typer.Exit(130)


def _report(summary: Mapping[str, Any], epochs: int, out: Path, json: str | None) -> None:
    report(summary, json)
    if summary["interrupted"]:
        stderr.print("interrupted; the run is saved: the same command with --resume goes on with it", soft_wrap=True)
    elif json != "-":
        if summary["epochs"] < epochs:
            print_lines([f"ended after {summary['epochs']} epochs: no higher mIoU since epoch {summary['best_epoch']}"])
        print_lines(
            [f"best mIoU {summary['best_miou']:.2%} in epoch {summary['best_epoch']}: local-dir:{out / 'best'}"]
        )
