"""Measure and write the tables of docs/performance.md, or write them again from kept results.

    python -m benchmarks.speed.page            # measures, an hour on two quiet cores, and writes
    python -m benchmarks.speed.page --render   # only writes, from docs/results/speed
    python -m benchmarks.speed.page --suite op # measures one part again, and writes

Results are kept as JSON, one file for each part. The page names parts that were never measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.speed.figures import Figures, SuiteProgress
from benchmarks.speed.growth import benchmark_growth
from benchmarks.speed.load import QUIET
from benchmarks.speed.models import benchmark_models
from benchmarks.speed.operation import GRID_SAMPLE, REFERENCE, TAP_LOOP, benchmark_operation
from ddsm_zoo.utils.files import atomic_path

PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "docs" / "results" / "speed"

Plain = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes to measure: sides of the operation's maps and of the growing images, the models' image, repeats."""

    maps: tuple[int, ...] = (64, 128, 256, 512)
    image: tuple[int, int] = (1024, 1024)
    sides: tuple[int, ...] = (256, 512, 1024, 2048)
    repeats: int = 5


SMALL = Sizes(maps=(8,), image=(32, 32), sides=(32, 64), repeats=1)

# part of the page -> its measurement
PARTS: dict[str, Callable[[Sizes, SuiteProgress | None], Figures]] = {
    "op": lambda sizes, show: benchmark_operation(sizes.maps, repeats=sizes.repeats, busy=True, progress=show),
    "models": lambda sizes, show: benchmark_models(sizes.image, repeats=sizes.repeats, busy=True, progress=show),
    "models_bf16": lambda sizes, show: benchmark_models(
        sizes.image, repeats=sizes.repeats, precision="bf16", busy=True, progress=show
    ),
    "growth": lambda sizes, show: benchmark_growth(sizes.sides, repeats=min(2, sizes.repeats), progress=show),
}


def measure(parts: Iterable[str], sizes: Sizes, results: Path, progress: SuiteProgress | None = None) -> None:
    """Measure some parts of the page, and save each in ``results`` as soon as it is finished."""
    for part in parts:
        figures = PARTS[part](sizes, progress).to_plain()
        with atomic_path(results / f"{part}.json") as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def write(results: Path, page: Path) -> None:
    """Write the tables of the kept ``results`` between the marks of the page.

    Raises ValueError for a page with other marks than those of `TABLES`.
    """
    text = page.read_text(encoding="utf-8")
    marks = re.findall(r"<!-- measured: (\w+) -->", text)
    if sorted(marks) != sorted(TABLES):
        raise ValueError(f"{page.name} has the marks {', '.join(marks)}, expected one of each: {', '.join(TABLES)}")
    kept: dict[str, Plain] = {}
    for part in PARTS:
        if (path := results / f"{part}.json").exists():
            kept[part] = json.loads(path.read_text(encoding="utf-8"))
    for name, render in TABLES.items():
        found = re.compile(rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = found.subn(functools.partial(_filled, render(kept)), text)
        if count != 1:
            raise ValueError(
                f"{page.name} has {count} parts from <!-- measured: {name} --> to <!-- end -->, expected 1"
            )
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _filled(content: str, match: re.Match[str]) -> str:
    return f"{match[1]}\n{content}\n\n{match[2]}"


def _bars(kept: Mapping[str, Plain]) -> str:
    rows = []
    for figures in kept.values():
        for bar in figures["bars"]:
            verdict = {True: "holds", False: "missed", None: f"not measured: {bar['unmeasured']}"}[bar["holds"]]
            value = "-" if bar["holds"] is None else f"{bar['value']:.3g}"
            rows.append([bar["name"], value, f"{bar['sense']} {bar['bound']:.3g}", verdict])
    return _missing(kept, PARTS) + _table(["Figure", "Measured", "Bar", ""], rows, right={1})


def _operation(kept: Mapping[str, Plain]) -> str:
    if "op" not in kept:
        return _missing(kept, ["op"]).strip()
    figures = kept["op"]
    rows, slow, largest = [], [], ""
    groups: dict[tuple[Any, ...], dict[str, Plain]] = {}
    for row in figures["rows"]:
        key = (row["side"], row["taps"], row["backward"], row["load"])
        groups.setdefault(key, {})["ours" if row["backend"] in ("cpu", "triton") else row["backend"]] = row
    for (side, taps, backward, load), found in groups.items():
        what = [f"{side} x {side}", str(taps), "forward, backward" if backward else "forward", load]
        columns = [found.get(name) for name in ("ours", TAP_LOOP, GRID_SAMPLE)]
        seconds = ["-" if row is None else f"{row['median']:.3g}" for row in columns]
        memory = ["-" if row is None else f"{row['extra_bytes'] / 2**20:.0f}" for row in columns]
        rows.append([*what, *seconds, *(memory if load == QUIET else ["", "", ""])])
        if REFERENCE in found and (side, taps) == max((key[0], key[1]) for key in groups if REFERENCE in groups[key]):
            reference = found[REFERENCE]
            slow.append(f"{what[2]} {reference['median']:.3g} s and {reference['extra_bytes'] / 2**20:.0f} MiB")
            largest = f"{what[0]} maps with {taps} taps"
    heads = ["Maps", "Taps", "Pass", "Load", "ours (s)", "tap loop (s)", "`grid_sample` (s)"]
    heads += ["ours (MiB)", "tap loop (MiB)", "`grid_sample` (MiB)"]
    note = f"\n\nThe reference in plain torch (slow by design) took once, on {largest}: {'; '.join(slow)}."
    return _machine(figures) + _table(heads, rows, right=range(4, 10)) + (note if slow else "")


def _models(part: str) -> Callable[[Mapping[str, Plain]], str]:
    def render(kept: Mapping[str, Plain]) -> str:
        if part not in kept:
            return _missing(kept, [part]).strip()
        figures = kept[part]
        rows = [
            [
                f"`{row['model']}`" if row["model"].startswith("uper") else row["model"],
                row["load"],
                f"{row['median']:.2f}",
                f"{row['ratio']:.2f}",
                row["memory_format"].replace("_", "-"),
                f"{row['params'] / 1e6:.1f}",
                f"{row['multiply_adds'] / 1e9:.1f}",
            ]
            for row in figures["rows"]
        ]
        heads = ["Model", "Load", "Seconds", "Ours / this", "Memory format", "Params (M)", "Multiply-adds (G)"]
        return _machine(figures) + _table(heads, rows, right={2, 3, 5, 6})

    return render


def _growth(kept: Mapping[str, Plain]) -> str:
    if "growth" not in kept:
        return _missing(kept, ["growth"]).strip()
    rows = [
        [
            row["model"],
            " x ".join(map(str, row["size"])),
            f"{math.prod(row['size']) / 1e6:.2f}",
            f"{row['median']:.2f}",
            f"{row['extra_bytes'] / 2**20:.0f}",
        ]
        for row in kept["growth"]["rows"]
    ]
    heads = ["Model", "Size", "Megapixels", "Seconds", "Extra memory (MiB)"]
    return _machine(kept["growth"]) + _table(heads, rows, right={2, 3, 4})


# mark in the page -> its table
TABLES: dict[str, Callable[[Mapping[str, Plain]], str]] = {
    "bars": _bars,
    "op": _operation,
    "models": _models("models"),
    "models_bf16": _models("models_bf16"),
    "growth": _growth,
}


def _missing(kept: Mapping[str, Plain], parts: Iterable[str]) -> str:
    """Return one line for each part without results, with the command that measures it."""
    absent = [part for part in parts if part not in kept]
    return "".join(
        f"Not measured yet: `{part}`. Run `python -m benchmarks.speed.page --suite {part}`.\n\n" for part in absent
    )


def _machine(figures: Plain) -> str:
    where = figures["environment"]
    bf16 = f"with {where['bf16']}" if where["bf16"] else "without bfloat16 instructions"
    device = where["gpu"] or f"{where['cpu']} {bf16}, {where['threads']} threads"
    return f"Machine: {device}; torch {where['versions']['torch']}.\n\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int]) -> str:
    numbers = set(right)
    rule = ["---:" if index in numbers else "---" for index in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the selected parts and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.page", description=__doc__)
    parser.add_argument("--render", action="store_true", help="measure nothing, only write the page")
    parser.add_argument("--suite", action="append", choices=list(PARTS), help="measure this part only; repeatable")
    parser.add_argument("--repeats", type=int, default=Sizes.repeats, help="measured calls of each candidate")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the measurements")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write")
    options = parser.parse_args(arguments)
    if not options.render:
        measure(
            options.suite or PARTS, SMALL if options.small else Sizes(repeats=options.repeats), options.results, _show
        )
    write(options.results, options.page)


def _show(title: str, done: int, total: int) -> None:
    print(f"{title}: {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
