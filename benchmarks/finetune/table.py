"""The table of results, as Markdown, and its place on a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.finetune.cells import results_of
from benchmarks.finetune.plan import Plan
from ddsm_zoo.utils.files import write_text

BEGIN, END = "<!-- finetune: begin -->", "<!-- finetune: end -->"


def render_table(out: Path, data: Sequence[Path], methods: Sequence[str], seeds: Sequence[int], plan: Plan) -> str:
    """Render the results as Markdown, one row for each data set and method. What has no result is "not measured"."""
    height, width = plan.crop
    lines = [
        f"Crops of {height} x {width}, {plan.seconds:g} s of processor time a training. mIoU of `val`, %:",
        "",
        f"| Data | Method | {' | '.join(f'seed {seed}' for seed in seeds)} | Steps | Seconds |",
        f"|---|---|{'---|' * len(seeds)}---|---|",
    ]
    for root in data:
        for method in methods:
            found = [results_of(method, root, seed, out, plan) for seed in seeds]
            best = [max(results, key=lambda result: result.miou, default=None) for results in found]
            scores = ["not measured" if result is None else f"{result.miou:.1f}" for result in best]
            known = [result for result in best if result is not None]
            rate = f", rate {known[0].rate:g}" if known and known[0].rate else ""
            steps = str(known[0].steps) if known else "-"
            seconds = ", ".join(f"{result.seconds:.0f}" for result in known) or "-"
            lines.append(
                f"| {root.name.partition('-')[0]} | {method}{rate} | {' | '.join(scores)} | {steps} | {seconds} |"
            )
    return "\n".join(lines) + "\n"


def insert(page: Path, table: str) -> None:
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} has no place for the table, expected one line {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    write_text(page, f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}")
