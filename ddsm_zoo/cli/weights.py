"""``save``: weights to where they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddsm_zoo.cli.app import app
from ddsm_zoo.console import check_folder, print_lines


@app.command()
def save(
    model: Annotated[str, typer.Argument(help="A model with weights: a name, hf-hub:ORG/REPO or local-dir:PATH.")],
    folder: Annotated[Path, typer.Argument(help="Where to write it.", metavar="DIR")],
    half: Annotated[bool, typer.Option("--half", help="Store kernels in 16 bits, for half the size.")] = False,
) -> None:
    """Write a pretrained model as a folder with config.json and model.safetensors, which local-dir:DIR loads again.

    ddsm-zoo save uper_ddsm_lite0_camvid models/camvid
    """
    check_folder(folder)
    from ddsm_zoo.factory import create_trained, save_pretrained

    save_pretrained(create_trained(model), folder, half=half)
    print_lines([f"local-dir:{folder}"])
