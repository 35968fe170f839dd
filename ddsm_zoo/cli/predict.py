"""Command ``predict``: label images, videos and cameras."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ddsm_zoo.cli.app import DeviceOption, JsonOption, ModelOption, ThresholdOption, app
from ddsm_zoo.cli.console import (
    check_folder,
    check_output,
    print_error,
    print_lines,
    print_shares,
    progress_bar,
    report,
)

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ddsm_zoo.inference.folder import FileResult
    from ddsm_zoo.inference.modes import Precision
    from ddsm_zoo.inference.predictor import Palette
    from ddsm_zoo.labels import LabelSpace

DEFAULT_MODEL = "uper_ddsm_lite0_camvid"
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@app.command()
def predict(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Images, videos, or folders of images and of folders of images.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", metavar="DIR")] = Path(
        "predictions"
    ),
    tile: Annotated[
        str | None, typer.Option(help="Cut pictures larger than N x N into tiles; auto: as large as fit.", metavar="N")
    ] = None,
    memory: Annotated[
        str, typer.Option(help="What --tile may use, pictures included: the larger they may be.", metavar="SIZE")
    ] = "4GiB",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 for half the memory.", metavar="NAME")] = "fp32",
    camera: Annotated[
        int | None, typer.Option(min=0, help="Label what camera N sees, until Ctrl-C.", metavar="N")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="At most so many of a video or camera.")] = None,
    palette: Annotated[
        str, typer.Option(help="Colors of overlays: contrast, or own for the data set's.", metavar="NAME")
    ] = "contrast",
    threshold: ThresholdOption = None,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Label images: writes NAME_ids.png (class ids), NAME_color.png and NAME_overlay.png for each of them.

    Of a video or camera it writes NAME_overlay.mp4. docs/large-images.md has more on --tile and --memory.

    ddsm-zoo predict street.jpg

    ddsm-zoo predict holiday/ drive.mp4 -o masks --model uper_ddsm_lite0_camvid --json -

    ddsm-zoo predict aerial.tif --tile auto --memory 4GiB
    """
    if not paths and camera is None:
        raise typer.BadParameter("expected images, videos or folders of images, or --camera N")
    side, limit = parse_tile(tile), parse_memory(memory)
    check_folder(out)
    check_output(json)
    from ddsm_zoo.inference.folder import find_inputs, predict_folder

    inputs = find_inputs(paths or [], out)
    results = list(inputs.failures)
    if inputs.images or inputs.videos or camera is not None:
        from ddsm_zoo.inference.predictor import Predictor
        from ddsm_zoo.inference.video import find_av

        if inputs.videos or camera is not None:
            find_av()  # fail before a model is loaded
        predictor = Predictor(
            model,
            device,
            # the predictor rejects an unknown precision or palette
            precision=cast("Precision", precision),
            palette=cast("Palette", palette),
            tile=side,
            memory=limit,
            threshold=threshold,
        )
        with bars() as show:
            files = (*inputs.images, *inputs.videos)
            results += predict_folder(predictor, files, out, camera=camera, frames=frames, progress=show)
        if json != "-":
            show_results(results, predictor.labels, out)
    for result in results:
        if result.error is not None:
            print_error(ValueError(result.error))
    report({"model": model, **by_kind(results)}, json)
    if any(result.error is not None for result in results):
        raise typer.Exit(2)


def by_kind(results: Iterable[FileResult]) -> dict[str, list[dict[str, Any]]]:
    """Group the results as plain data: images, videos, failures."""
    kinds: dict[str, list[dict[str, Any]]] = {"images": [], "videos": [], "failures": []}
    for result in results:
        kind = "failures" if result.error is not None else "images" if result.clip is None else "videos"
        kinds[kind].append(result.to_dict())
    return kinds


def parse_tile(text: str | None) -> int | Literal["auto"] | None:
    """Parse ``auto`` or a number of pixels. Raises ValueError."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"--tile is {text!r}, expected auto or a number of pixels such as 1024")
    return int(text)


def parse_memory(text: str) -> int:
    """Parse ``4GiB``, ``2500 MB`` or a number of bytes, as bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmg]i?b)?", text, flags=re.ASCII | re.IGNORECASE)
    amount = Fraction(match[1]) * UNITS[(match[2] or "").lower()] if match else 0
    if amount < 1:
        raise ValueError(f"--memory is {text!r}, expected an amount such as 4GiB or 2500MB")
    return int(amount)


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar for each unfinished task. A total of 0 is unknown."""
    with progress_bar() as progress:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, visible=False)
            progress.update(tasks[name], completed=done, total=total or None, visible=done != total)

        yield show


def show_results(results: Sequence[FileResult], labels: LabelSpace, out: Path) -> None:
    images = [result for result in results if result.clip is None and result.error is None]
    if images:
        print_shares([image.shares for image in images], labels)
        print_lines([f"{len(images[0].files)} pictures for each of {len(images)} images in {out}"])
    for result in results:
        if (clip := result.clip) is not None:
            print_shares([clip.shares], labels)
            height, width = clip.size
            pace = f"{clip.seconds:.1f} s: {clip.frames / clip.seconds:.1f} frames/s"
            print_lines([f"{result.files['overlay']}: {clip.frames} frames of {width} x {height} in {pace}"])
