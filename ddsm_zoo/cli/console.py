"""Terminal output: lines, tables, progress bars and JSON."""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import logging
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ddsm_zoo.errors import UserError
from ddsm_zoo.utils.files import OutputError, to_json, write_json

if TYPE_CHECKING:
    from ddsm_zoo.labels import LabelSpace
    from ddsm_zoo.training.loop import ProgressEvent

PACKAGE = Path(__file__).resolve().parents[1]
# Parts of messages of torch, of the loader of shared libraries and of the system
OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "failed to map segment", "Cannot allocate memory")
WIDE = 10_000  # columns of a file or pipe, where nothing should wrap


def _console(*, to_stderr: bool = False) -> Console:
    console = Console(stderr=to_stderr)
    if "COLUMNS" not in os.environ and not console.file.isatty():
        console.width = WIDE
    return console


stdout = _console()
stderr = _console(to_stderr=True)


class LogLines(logging.Handler):
    """Log handler that prints each message as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        print_notes([self.format(record)])


def print_any_text() -> None:
    """Print characters that the terminal's encoding lacks, and bytes of file names that are not UTF-8, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_folder(folder: Path) -> None:
    """Raise OutputError unless files can be written in ``folder`` or, if it does not exist yet, in a parent of it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(error.errno, error.strerror, str(folder)) from error


def check_output(json: str | None) -> None:
    """Raise OutputError, before anything is computed, if the JSON output cannot be written."""
    if json is None or json == "-":
        return
    if Path(json).is_dir():
        raise OutputError(errno.EISDIR, "it is a folder, expected a file", json)
    check_folder(Path(json).parent)


def report(figures: object, json: str | None) -> None:
    if json == "-":
        text = to_json(figures)
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:  # the escapes that are printed instead are not JSON's
            text = dumps(loads(text), indent=2) + "\n"
        sys.stdout.write(text)
    elif json is not None:
        write_json(json, figures)


def drop_output() -> None:
    """Forget output that cannot be written, for example to a full disk. Python would try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def one_line(error: BaseException) -> str:
    """Describe an error in one line. One that nobody expected gets its type, its place and the way to its traceback."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if _lacks_memory(error):
        return "there is not enough memory: choose smaller images or fewer at a time, and look at what else runs"
    bare = type(error) in (KeyError, IndexError)  # their text is a key alone
    if isinstance(error, (ValueError, LookupError, OSError)) and text and not bare:
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    place = f" in {Path(own[-1].filename).relative_to(PACKAGE.parent)}, line {own[-1].lineno}" if own else ""
    return f"{type(error).__name__}{place}: {text[:300]} (DDSM_ZOO_DEBUG=1 shows the traceback)"


def kind_of(error: BaseException) -> str | None:
    """Return the row of docs/troubleshooting.md for an error, None if it has none."""
    if isinstance(error, UserError):
        return error.kind
    return "out-of-memory" if _lacks_memory(error) else None


def print_error(error: BaseException) -> None:
    """Print an error as one line on stderr, with its kind in brackets at the end."""
    kind = kind_of(error)
    text = f"error: {one_line(error)}{(kind and f' [{kind}]') or ''}"
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


def print_notes(lines: Iterable[str]) -> None:
    """Print lines on stderr: remarks on a run, apart from its results."""
    for line in lines:
        stderr.print(line, markup=False, highlight=False, soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table with the first column left-aligned and the others right-aligned."""
    print_lines([title])
    table = Table(show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and any(columns) else "left")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    stdout.print(table)


def print_shares(shares: Sequence[Mapping[str, float]], labels: LabelSpace, confidence: float | None = None) -> None:
    """Print each class with its mean share and the number of images it occurs in, the largest share first.

    The title has the mean ``confidence`` of the predictions.
    """
    rows = []
    for name, (red, green, blue) in zip(labels.names, labels.palette, strict=True):
        values = [image[name] for image in shares]
        swatch = Text.assemble(("  ", f"on rgb({red},{green},{blue})"), f" {name}")
        rows.append((sum(values) / len(values), swatch, sum(value > 0 for value in values)))
    rows.sort(key=lambda row: -row[0])
    cells = [(swatch, percent(share), str(images)) for share, swatch, images in rows if images]
    title = [f"mean of {len(shares)} images"] if len(shares) > 1 else []
    title += [] if confidence is None else [f"mean confidence {percent(confidence)} %"]
    print_table(", ".join(title), ("class", "share %", "images"), cells)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if math.isfinite(fraction) else "-"


def progress_bar() -> Progress:
    """Create a progress bar on stderr. It is shown only on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *times, console=stderr, transient=True, disable=not stderr.is_terminal)


@contextlib.contextmanager
def training_bar() -> Iterator[Callable[[ProgressEvent], None]]:
    """Show a bar over the steps of the run, and below it one over the images that are checked or validated."""
    over_images = {"check": "checking the data", "validate": "validating"}
    with progress_bar() as progress:
        steps = progress.add_task("starting", total=None)
        images = progress.add_task("", total=None, visible=False)

        def show(event: ProgressEvent) -> None:
            doing = over_images.get(event.phase)
            progress.update(images, visible=doing is not None)
            if doing is not None:
                progress.update(images, description=doing, completed=event.done, total=event.total)
                return
            text = f"epoch {event.epoch}/{event.epochs} loss {event.loss:.3f} mIoU {percent(event.miou)}"
            if pace := progress.tasks[steps].speed:
                text += f" {datetime.timedelta(seconds=round(event.total / event.epochs / pace))} an epoch"
            progress.update(steps, description=text, completed=event.done, total=event.total)

        yield show
