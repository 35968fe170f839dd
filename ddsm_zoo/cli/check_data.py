"""Command ``check-data``: find problems in a data set."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from ddsm_zoo.cli.app import DATA_KINDS, JsonOption, app
from ddsm_zoo.cli.console import check_output, percent, print_lines, print_table, progress_bar, report

if TYPE_CHECKING:
    from ddsm_zoo.data.check.report import Report


@app.command("check-data")
def check_data(
    data: Annotated[str, typer.Argument(help=f"Data set: {DATA_KINDS}.", metavar="SPEC")],
    split: Annotated[
        list[str] | None, typer.Option(help="Check only this split. May be repeated.", show_default=False)
    ] = None,
    json: JsonOption = None,
) -> None:
    """Check a data set before training: files, sizes, values in the masks, and images that are in several splits.

    Errors would stop training and end with exit status 2. Warnings may be intended. The
    documentation's page Data explains each.

    Example:

    ddsm-zoo check-data folder:mydata --json report.json
    """
    check_output(json)
    from ddsm_zoo.data.check.report import check_data
    from ddsm_zoo.data.masks import DatasetError

    with progress_bar() as progress:
        task = progress.add_task("checking", total=None)
        found = check_data(data, split, progress=lambda done, total: progress.update(task, completed=done, total=total))
    report(found.to_plain(), json)
    if json != "-":
        print_histogram(found)
        print_lines([f"masks: {found.reading}"])
        rows = [(problem.severity, str(problem)) for problem in found.problems]
        if rows:
            print_table("", ("", ""), rows)
    if found.errors:
        raise DatasetError(found.verdict(), kind="unusable-data", name=data)
    if json != "-":
        print_lines([found.verdict()])


def print_histogram(found: Report) -> None:
    """Print the share of each class in the labeled pixels of each split, and the number of images it occurs in."""
    parts = [
        [(percent(share), str(images)) for share, images in zip(part.shares(), part.occurs, strict=True)]
        for part in found.splits.values()
    ]
    rows = [(name, *chain(*cells)) for name, *cells in zip(found.labels.in_masks.names, *parts, strict=True)]
    columns = [title for name, part in found.splits.items() for title in (f"{name} %", f"of {part.images} images")]
    print_table(found.data, ("class", *columns), rows)
