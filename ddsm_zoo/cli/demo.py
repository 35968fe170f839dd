"""Command ``demo``: serve a web page to try models."""

from __future__ import annotations

import functools
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ddsm_zoo.cli.app import DeviceOption, app
from ddsm_zoo.cli.console import print_lines


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Model to show first: a name of `ddsm-zoo list`, hf-hub:ORG/REPO or local-dir:PATH. May be repeated.",
            metavar="NAME",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines connect.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = 7860,
    device: DeviceOption = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a web page to try models: drop an image, see its classes, click a pixel to see where DDSM samples.

    Examples:

    ddsm-zoo demo --open

    ddsm-zoo demo --model local-dir:runs/first/best --port 8000
    """
    from ddsm_zoo.demo import page
    from ddsm_zoo.inference.predictor import Predictor

    # Invalid options fail before a model is loaded, and a bad model fails here rather than on the page
    with page.listen(host, port) as listener, tempfile.TemporaryDirectory(prefix="ddsm-zoo-demo-") as folder:
        given = model or []
        names = page.offered(given)
        page.find_gradio()
        load = functools.cache(lambda name: Predictor(name, device))
        for name in given or names[:1]:
            load(name)
        blocks = page.build_page(names, (given or names)[0], load, Path(folder))
        address = page.address(listener)
        print_lines([f"{address} shows the demo, Ctrl-C ends it"])
        if open_browser:
            webbrowser.open(address)
        page.serve(blocks, listener)
