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
        typer.Option("--recipe", "-r", help="A name of `ddsm-zoo recipes`, or a path to a TOML file.", metavar="NAME"),
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.", metavar="DIR")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="In place of the recipe's.", metavar="NAME")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            help="Start from the model's task weights, or from random numbers; unless given, from the ImageNet weights "
            "of its backbone.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
    epochs: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Loading processes, in place of the recipe's.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another value for any field of the recipe, as TOML has it; may be given several times.",
            metavar="FIELD=VALUE",
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write DIR/tensorboard, for tensorboard --logdir DIR.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Train a model on the splits train and val of a data set. Ctrl-C saves the run, --resume goes on with it.

    DIR/best holds the model that scored highest on val: ddsm-zoo predict street.jpg --model local-dir:DIR/best

    DIR/val.png shows a few images of val with their predictions, DIR/curve.png the mIoU so far.

    ddsm-zoo train --recipe finetune --data folder:my_data --out runs/mine --pretrained

    ddsm-zoo train -r finetune -d folder:my_data -o runs/rare --pretrained --set sampling=balanced

    A recipe of your own: ddsm-zoo recipes --copy finetune --to mine.toml, edit it, and train with --recipe mine.toml
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
        if not reporting:  # the first process alone reports on the run
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
            [f"best mIoU {summary['best_miou']:.4f} in epoch {summary['best_epoch']}: local-dir:{out / 'best'}"]
        )
