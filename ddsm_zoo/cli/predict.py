"""Command ``predict``: segment images, videos and cameras."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ddsm_zoo.cli.app import DeviceOption, JsonOption, ModelOption, PrecisionOption, ThresholdOption, app
from ddsm_zoo.cli.console import (
    check_folder,
    check_output,
    print_error,
    print_lines,
    print_notes,
    print_shares,
    progress_bar,
    report,
)
from ddsm_zoo.errors import ArgumentError, UserError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ddsm_zoo.inference.folder import FileResult
    from ddsm_zoo.inference.precision import Precision
    from ddsm_zoo.inference.predictor import Palette, Predictor

DEFAULT_MODEL = "uper_ddsm_lite0_camvid"
_LISTED = 40  # classes that a line names
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@app.command()
def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Images, videos, folders, patterns ('a/**/*.jpg'), URLs, or lists of these (@list.txt)."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", metavar="DIR")] = Path(
        "predictions"
    ),
    tile: Annotated[
        str | None,
        typer.Option(help="Cut images larger than N x N into tiles; auto: the largest that fit.", metavar="N"),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory limit for --tile, image included. Default: 4GiB.", metavar="SIZE")
    ] = None,
    precision: PrecisionOption = "fp32",
    camera: Annotated[int | None, typer.Option(min=0, help="Segment camera N until Ctrl-C.", metavar="N")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop a video or camera after this many frames.")] = None,
    palette: Annotated[
        str,
        typer.Option(
            help="Overlay colors: contrast (easy to tell apart), or own (those of the data set).", metavar="NAME"
        ),
    ] = "contrast",
    threshold: ThresholdOption = None,
    bits: Annotated[int | None, typer.Option(help="Bits in use in 16-bit images, such as 12.", metavar="N")] = None,
    trim: Annotated[
        bool, typer.Option("--trim", help="Ignore black borders of images; their pixels get the nearest class.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results in DIR. Default: write to DIR-2.")
    ] = False,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Segment images, videos or a camera.

    Each image gives NAME_ids.png (class ids), NAME_color.png and NAME_overlay.png, a video NAME_overlay.mp4.
    The documentation's page Large images and videos explains --tile and --memory.

    Examples:

    ddsm-zoo predict street.jpg

    ddsm-zoo predict holiday/ drive.mp4 -o masks --model uper_ddsm_lite0_camvid --json -

    ddsm-zoo predict aerial.tif --tile auto --memory 4GiB

    ddsm-zoo predict 'photos/**/*.jpg' @more.txt https://example.org/street.jpg
    """
    if not paths and camera is None:
        raise typer.BadParameter("expected images, videos, folders, patterns, lists or URLs, or --camera N")
    side, limit = parse_tile(tile), parse_memory(memory or "4GiB")
    if memory is not None and side is None:
        raise ArgumentError(
            f"got --memory {memory} alone, expected --tile with it, such as --tile auto",
            kind="options",
            name="--memory",
        )
    check_folder(out)
    check_output(json)
    from ddsm_zoo.inference.folder import FileResult, free_folder, predict_folder, result_stems
    from ddsm_zoo.inference.inputs import find_inputs

    inputs = find_inputs(paths or [], out)
    notes = inputs.notes()
    free = out if overwrite else free_folder(out, result_stems(inputs, camera).values())
    if free != out:
        notes.append(f"{out} has results of these names: the new ones go to {free} (--overwrite replaces the old)")
    results = [FileResult.failed(source, error) for source, error in inputs.failures]
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
            bits=bits,
            trim=trim,
        )
        if predictor.domain:
            names = predictor.labels.names
            listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
            notes.insert(0, f"{model} is trained for {predictor.domain}: {listed}")
        print_notes(notes)
        with bars() as show:
            results = predict_folder(predictor, inputs, free, camera=camera, frames=frames, progress=show)
        remarks = [*fact_notes(results), *unfamiliar_notes(results, predictor)]
        if json != "-":
            show_results(results, predictor, free)
        print_notes(remarks)
        notes += remarks
    else:
        print_notes(notes)
    problems = [(result.problem, result.kind) for result in results if result.problem is not None]
    for text, kind in problems:
        print_error(UserError(text, kind=kind) if kind else ValueError(text))
    left_out = {reason: len(files) for reason, files in inputs.left_out.items()}
    report({"model": model, **by_kind(results), "left_out": left_out, "notes": notes}, json)
    if problems:
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
        raise ArgumentError(
            f"--tile is {text!r}, expected auto or a number of pixels such as 1024",
            name="--tile",
            got=text,
            expected="auto or a number of pixels",
        )
    return int(text)


def parse_memory(text: str) -> int:
    """Parse ``4GiB``, ``2500 MB`` or a number of bytes, as bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmg]i?b)?", text, flags=re.ASCII | re.IGNORECASE)
    amount = Fraction(match[1]) * UNITS[(match[2] or "").lower()] if match else 0
    if amount < 1:
        raise ArgumentError(
            f"--memory is {text!r}, expected an amount such as 4GiB or 2500MB",
            name="--memory",
            got=text,
            expected="an amount such as 4GiB or 2500MB",
        )
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


def fact_notes(results: Iterable[FileResult]) -> list[str]:
    """Describe what was not read of the images: the bits that they do not use, and pages after the first."""
    from ddsm_zoo.data.facts import describe_dark

    facts = {result.source: result.facts for result in results if result.facts is not None}
    largest = {source: each.largest for source, each in facts.items() if each.largest is not None}
    pages = {source: each.pages for source, each in facts.items() if each.pages > 1}
    border = {source: "black" for source, each in facts.items() if each.border}
    notes = []
    if border:
        advice = "rows or columns at the border change the classes beside them; --trim leaves them out"
        notes.append(f"{_some(border)}: {advice}")
    if dark := describe_dark(largest):
        notes.append(f"{_some(largest)}: {dark}; they are nearly black unless --bits N says how many are in use")
    if pages:
        notes.append(f"{_some({source: f'{count} pages' for source, count in pages.items()})}: only the first is read")
    return notes


def unfamiliar_notes(results: Iterable[FileResult], predictor: Predictor) -> list[str]:
    """Name the images that look unlike those that the model is trained for."""
    found = {result.source: result.confidence for result in results if result.confidence is not None}
    low = {source: f"{value:.2f}" for source, value in found.items() if value < predictor.familiar}
    if not low or predictor.domain is None:
        return []
    limit = f"{predictor.familiar:.2f}"
    if predictor.familiar_is_measured:
        text = f"looks unlike {predictor.domain}, where the mean confidence is above {limit}"
    else:
        text = f"mean confidence below {limit}: looks unlike {predictor.domain}, or the model is unsure of those too"
    return [f"{_some(low)}: {text}; the classes may mean nothing"]


def _some(values: Mapping[str, object]) -> str:
    """List sources with their values: the first three, and a count."""
    shown = ", ".join(f"{source} ({value})" for source, value in [*values.items()][:3])
    return shown if len(values) <= 3 else f"{shown} and {len(values) - 3} more"


def show_results(results: Sequence[FileResult], predictor: Predictor, out: Path) -> None:
    from ddsm_zoo.utils.visualize import contrast

    images = [result for result in results if result.clip is None and result.error is None]
    labels = contrast(predictor.labels) if predictor.palette == "contrast" else predictor.labels
    if images:
        known = [image.confidence for image in images if image.confidence is not None]
        print_shares([image.shares for image in images], labels, sum(known) / len(known) if known else None)
        count = "1 image" if len(images) == 1 else f"{len(images)} images"
        print_lines([f"{count}, {len(images[0].files)} pictures each, in {out}"])
    for result in results:
        if (clip := result.clip) is not None:
            print_shares([clip.shares], labels, clip.confidence)
            height, width = clip.size
            pace = f"{clip.seconds:.1f} s: {clip.frames / clip.seconds:.1f} frames/s"
            print_lines([f"{result.files['overlay']}: {clip.frames} frames of {width} x {height} in {pace}"])
