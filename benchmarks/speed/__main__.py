"""``python -m benchmarks.speed``: how fast it is here, beside what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddsm_zoo.cli.app import JsonOption, OneLineErrors
from ddsm_zoo.cli.console import check_output, print_lines, print_table, progress_bar, report
from ddsm_zoo.cli.models import parse_size
from ddsm_zoo.cli.predict import DEFAULT_MODEL

if TYPE_CHECKING:
    from benchmarks.speed import Figures


class Suite(str, Enum):
    op = "op"
    models = "models"
    growth = "growth"
    precision = "precision"


class Precision(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


# What each suite reads beside --threads and --json
_OPTIONS = {
    Suite.op: ("side", "precision", "repeats", "busy"),
    Suite.models: ("size", "batch", "precision", "compile", "repeats", "busy"),
    Suite.growth: ("side", "repeats", "plot"),
    Suite.precision: ("model", "data", "split"),
}
_VERDICTS = {True: "holds", False: "missed", None: "not measured"}


app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    subcommand_metavar="",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def benchmark(
    suite: Annotated[
        Suite, typer.Option(help="The operation, whole models, time over image size, or bfloat16 beside float32.")
    ],
    size: Annotated[str | None, typer.Option(help="models: image size, one number or HxW; 1024 unless given.")] = None,
    side: Annotated[
        list[int] | None,
        typer.Option(min=2, help="op: side of the maps, growth: side of the images; several times for several."),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="op, models: type of all tensors; fp32 unless given.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="models: images in a call; 1 unless given.")] = None,
    compiled: Annotated[bool | None, typer.Option("--compile", help="models: through torch.compile.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="precision: a model with weights; the bundled one unless given."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="precision: images, as camvid:ROOT or scenes:N.", metavar="SPEC")
    ] = None,
    split: Annotated[str | None, typer.Option(help="precision: the split of the data; val unless given.")] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="op, models, growth: measured calls of each candidate; 5 unless given.")
    ] = None,
    busy: Annotated[
        bool | None,
        typer.Option("--busy", help="op, models: again while a process of its own keeps one core busy, and stops."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; unless given, its own choice.")] = None,
    plot: Annotated[Path | None, typer.Option(help="growth: draw time over pixels to FILE.", metavar="FILE")] = None,
    json: JsonOption = None,
) -> None:
    """Measure the operation against grid_sample, our models against smp, torchvision and DANet, bf16 against fp32.

    Candidates take turns in one run; what counts is the ratio of medians. Takes minutes; needs ddsm-zoo[benchmark].

    python -m benchmarks.speed --suite op --side 256 --json -

    python -m benchmarks.speed --suite models --size 1024 --busy

    python -m benchmarks.speed --suite models --precision bf16 --batch 8 --compile

    python -m benchmarks.speed --suite precision --data camvid:data/camvid
    """
    given = {"size": size, "side": side, "precision": precision, "batch": batch, "compile": compiled, "model": model}
    check_options(suite, {**given, "data": data, "split": split, "repeats": repeats, "plot": plot, "busy": busy})
    height, width = parse_size("1024" if size is None else size)
    if suite is Suite.precision and data is None:
        raise ValueError("the suite precision labels images, expected --data SPEC such as camvid:ROOT")
    check_output(json)
    if plot is not None:
        check_output(str(plot))
    import torch

    from benchmarks import speed

    if plot is not None:
        speed.check_plot(plot)
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=None)

        def show(title: str, done: int, total: int) -> None:
            bar.update(task, description=title, completed=done, total=total)

        calls, kind = repeats or 5, (precision or Precision.fp32).value
        if suite is Suite.op:
            figures = speed.benchmark_operation(
                side or (64, 128, 256, 512), precision=kind, repeats=calls, busy=bool(busy), progress=show
            )
        elif suite is Suite.models:
            figures = speed.benchmark_models(
                (height, width),
                batch=batch or 1,
                precision=kind,
                compiled=bool(compiled),
                repeats=calls,
                busy=bool(busy),
                progress=show,
            )
        elif suite is Suite.growth:
            figures = speed.benchmark_growth(side or (256, 512, 1024, 2048), repeats=calls, progress=show)
        else:
            assert data is not None
            figures = speed.benchmark_precision(model or DEFAULT_MODEL, data, split=split or "val", progress=show)
    report(figures.to_plain(), json)
    if plot is not None:
        speed.plot_growth(figures, plot)
    if json != "-":
        print_figures(figures)


def check_options(suite: Suite, given: Mapping[str, object]) -> None:
    """Raise ValueError for an option that the suite would not read."""
    read = _OPTIONS[suite]
    for name, value in given.items():
        if value is not None and name not in read:
            options = ", ".join(f"--{option}" for option in read)
            raise ValueError(f"the suite {suite.value} has no use for --{name}, expected only {options}")


def print_figures(figures: Figures) -> None:
    """One table of what was measured and one of the bars."""
    rows = [{name: cell(name, value) for name, value in row.items() if name != "seconds"} for row in figures.rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    where = figures.environment
    title = [
        figures.suite,
        where["gpu"] or where["cpu"],
        f"{where['threads']} threads",
        f"torch {where['versions']['torch']}",
    ]
    # what is the same in all rows, such as the type or the batch, would leave the others no room
    common = {name for name in columns[1:] if len(rows) > 1 and len({row.get(name) for row in rows}) == 1}
    title += [f"{heading(name)} {rows[0][name]}" for name in columns if name in common]
    columns = [name for name in columns if name not in common]
    print_table(", ".join(title), [heading(name) for name in columns], cells(rows, columns))
    if figures.bars:
        lines = [
            (bar.name, f"{bar.value:.4g}", f"{bar.sense} {bar.bound:.4g}", _VERDICTS[bar.holds]) for bar in figures.bars
        ]
        print_table("", ("figure", "measured", "bar", ""), lines)
        print_lines(
            f"{bar.name}: not measured on this machine, {bar.unmeasured}" for bar in figures.bars if bar.unmeasured
        )
    if "bandwidth" in where:
        print_lines([f"roofline: seconds for the moved MiB at the {where['bandwidth'] / 1e9:.1f} GB/s of a large copy"])
    print_lines(["s: median seconds of a call; ratio: the time of the first row over that of this one"])


def cells(rows: Iterable[Mapping[str, str]], columns: Iterable[str]) -> list[list[str]]:
    wanted = list(columns)
    return [[row.get(name, "") for name in wanted] for row in rows]


def heading(name: str) -> str:
    units = {
        "median": "s",
        "extra_bytes": "extra MiB",
        "moved_bytes": "moved MiB",
        "roofline": "roofline s",
        "params": "M",
        "multiply_adds": "G",
    }
    return units.get(name, name.replace("_", " "))


def cell(name: str, value: Any) -> str:
    """A measured value in the unit of its `heading`."""
    scale = {"extra_bytes": 2**20, "moved_bytes": 2**20, "params": 1e6, "multiply_adds": 1e9}
    if name in scale:
        return f"{value / scale[name]:.1f}"
    if name == "size":
        return " x ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.speed")
