"""Command ``recipes``: list the recipes of the package, and copy one to edit."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ddsm_zoo.cli.app import JsonOption, app
from ddsm_zoo.cli.console import check_output, print_lines, report
from ddsm_zoo.errors import ArgumentError


@app.command()
def recipes(
    copy: Annotated[
        str | None, typer.Option("--copy", help="Copy this recipe to a file for editing.", metavar="NAME")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="File for --copy. Default: NAME.toml in the current folder.", metavar="FILE"),
    ] = None,
    json: JsonOption = None,
) -> None:
    """List the training recipes of the package with purpose, hardware, duration and expected score.

    Train with a recipe:  ddsm-zoo train --recipe finetune --data folder:mydata --out runs/mine --pretrained

    Copy a recipe to edit it:  ddsm-zoo recipes --copy finetune --to mine.toml
    """
    if copy is None and to is not None:
        raise ArgumentError(f"got --to {to} alone, expected --copy NAME with it", kind="options", got=to)
    if copy is not None and json is not None:
        raise ArgumentError("got --copy and --json, expected one: --json lists the recipes", kind="options")
    check_output(json)
    from ddsm_zoo.training.recipe import Recipe, copy_recipe, list_recipes

    if copy is not None:
        target = copy_recipe(copy, to)
        print_lines([f"wrote {target}: edit it, then train with --recipe {shlex.quote(str(target))}"])
        return
    rows = []
    for name in list_recipes():
        recipe = Recipe.load(name)
        rows.append({"name": name, **dataclasses.asdict(recipe.about), "model": recipe.model})
    report(rows, json)
    if json != "-":
        for row in rows:
            print_lines([f"{row.pop('name')}: {row.pop('purpose')}"])
            print_lines(f"  {key:<9} {text}" for key, text in row.items())
