"""``benchmark``: how fast it is here, beside what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsm_zoo.cli.app import JsonOption, app
from ddsm_zoo.cli.models import parse_size
from ddsm_zoo.console import check_output, print_lines, print_table, progress_bar, report

if TYPE_CHECKING:
    from ddsm_zoo.benchmarking import Figures


class Suite(str, Enum):
    op = "op"
    models = "models"
    growth = "growth"


@app.command()
def benchmark(
    suite: Annotated[Suite, typer.Option(help="The operation, whole models, or time over image size.")],
    size: Annotated[str, typer.Option(help="models: image size, one number or HxW.")] = "1024",
    side: Annotated[
        list[int] | None,
        typer.Option(min=2, help="op: side of the maps, growth: side of the images; several times for several."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured calls of each candidate.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; unless given, its own choice.")] = None,
    plot: Annotated[Path | None, typer.Option(help="growth: draw time over pixels to FILE.", metavar="FILE")] = None,
    json: JsonOption = None,
) -> None:
    """Measure the operation against its definition, and our models against smp, torchvision and DANet, side by side.

    Candidates take turns in one run; what counts is the ratio of medians. Takes minutes; needs ddsm-zoo[benchmark].

    ddsm-zoo benchmark --suite op --side 256 --json -

    ddsm-zoo benchmark --suite models --size 1024
    """
    height, width = parse_size(size)
    check_output(json)
    if plot is not None:
        check_output(str(plot))
        if suite is not Suite.growth:
            raise ValueError(f"--plot draws the suite growth, got {suite.value}")
    import torch

    from ddsm_zoo import benchmarking

    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=None)

        def show(title: str, done: int, total: int) -> None:
            bar.update(task, description=title, completed=done, total=total)

        if suite is Suite.op:
            figures = benchmarking.benchmark_operation(side or (64, 128, 256, 512), repeats=repeats, progress=show)
        elif suite is Suite.models:
            figures = benchmarking.benchmark_models((height, width), repeats=repeats, progress=show)
        else:
            figures = benchmarking.benchmark_growth(side or (256, 512, 1024, 2048), repeats=repeats, progress=show)
    report(figures.to_plain(), json)
    if plot is not None:
        benchmarking.plot_growth(figures, plot)
    if json != "-":
        print_figures(figures)


def print_figures(figures: Figures) -> None:
    """One table of what was measured and one of the bars."""
    rows = [{name: cell(name, value) for name, value in row.items() if name != "seconds"} for row in figures.rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    where = figures.environment
    machine = f"{where['gpu'] or where['cpu']}, {where['threads']} threads, torch {where['versions']['torch']}"
    print_table(f"{figures.suite}: {machine}", [heading(name) for name in columns], cells(rows, columns))
    if figures.bars:
        lines = [
            (bar.name, f"{bar.value:.4g}", f"{bar.sense} {bar.bound:.4g}", "holds" if bar.holds else "missed")
            for bar in figures.bars
        ]
        print_table("", ("figure", "measured", "bar", ""), lines)
    print_lines(["s: median seconds; ratio: the time of the first row over that of this one"])


def cells(rows: Iterable[Mapping[str, str]], columns: Iterable[str]) -> list[list[str]]:
    wanted = list(columns)
    return [[row.get(name, "") for name in wanted] for row in rows]


def heading(name: str) -> str:
    return {"median": "s", "extra_bytes": "extra MiB", "params": "M", "multiply_adds": "G"}.get(
        name, name.replace("_", " ")
    )


def cell(name: str, value: Any) -> str:
    """A measured value in the unit of its `heading`."""
    scale = {"extra_bytes": 2**20, "params": 1e6, "multiply_adds": 1e9}
    if name in scale:
        return f"{value / scale[name]:.1f}"
    if name == "size":
        return " x ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
