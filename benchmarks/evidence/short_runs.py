"""Whether the modules help: equal short trainings over seeds, and the page docs/results.md made from their logs.

    python benchmarks/evidence/short_runs.py run camvid:ROOT
    python benchmarks/evidence/short_runs.py page

``run`` trains and scores whatever has no log under docs/results/ yet, one run after the other, and may be stopped and
started again at any time; ``--seeds`` and ``--models`` say less or more. ``page`` makes docs/results.md anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddsm_zoo import evaluate, model_config
from ddsm_zoo.cli.console import progress_bar, training_bar
from ddsm_zoo.models import Segmenter, complexity
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.run import run_recipe
from ddsm_zoo.utils.files import write_text

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
RECIPE = ROOT / "ddsm_zoo" / "recipes" / "evidence_camvid.toml"

# The rows of the paper's Table 1: the plain decoder, deformable convolution, each half of the module, the module
MODELS = ("uper_lite0", "uper_dcn_lite0", "uper_ddsm_s_lite0", "uper_ddsm_c_lite0", "uper_ddsm_lite0")
SIZE = (360, 480)
RADII = ("3", "5", "9", "12", "mean")
SCORED = ("miou", "boundary_f", "boundary_iou", "iou", "model", "protocol", "count", "versions")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training as its log has it: the scores are fractions of 1, ``seconds`` are those of its training steps."""

    model: str
    seed: int
    seconds: float
    score: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Run:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        recipe = lines[0]["recipe"]
        seconds = sum(line["seconds"] for line in lines if line["event"] == "epoch")
        return cls(model=recipe["model"], seed=recipe["seed"], seconds=seconds, score=lines[-1])

    def figures(self) -> list[float]:
        """mIoU and the boundary F-scores at `RADII`, in percent."""
        return [100 * self.score["miou"], *(100 * self.score["boundary_f"][radius] for radius in RADII)]


def run(data: str, recipe: Recipe, folder: Path) -> None:
    """Train and score one run, unless its log is there already."""
    name = f"{recipe.model}_seed{recipe.seed}"
    log = LOGS / f"{name}.jsonl"
    if log.exists():
        return
    out = folder / name
    print(name, flush=True)
    with training_bar() as show:
        summary = run_recipe(recipe, data, out, resume=True, source=RECIPE.name, progress=show)
    if summary["interrupted"]:
        raise SystemExit(f"{name} was interrupted and its state saved: the same command goes on with it")
    write_log(log, out, f"local-dir:{out / 'best'}", data, {"model": recipe.model})


def write_log(log: Path, out: Path, model: str | Segmenter, data: str, about: Mapping[str, Any]) -> None:
    """The log of the run in ``out`` with a last line of what the model scores."""
    with progress_bar() as bar:
        task = bar.add_task("scoring", total=None)
        figures = evaluate(
            model,
            data,
            boundary=True,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    score = {"event": "score", **{key: figures[key] for key in SCORED}, **about}
    write_text(log, (out / "log.jsonl").read_text(encoding="utf-8") + json.dumps(score) + "\n")


def table(runs: Sequence[Run]) -> list[str]:
    """A row for each model, and a row for what each gains over the first one with the same seeds."""
    models = [model for model in MODELS if any(each.model == model for each in runs)]
    models += sorted({each.model for each in runs} - set(models))
    heads = ["mIoU", *(f"F {radius} px" if radius != "mean" else "F mean" for radius in RADII)]
    lines = [
        cells(["Model", "Seeds", *heads, "Params (M)", "Multiply-adds (G)", "Minutes"]),
        cells(["---", "---:", *["---:"] * (len(heads) + 3)]),
    ]
    for model in models:
        own = [each for each in runs if each.model == model]
        cost = complexity(dataclasses.replace(model_config(model), num_classes=11), SIZE)
        size = [f"{cost.params / 1e6:.2f}", f"{cost.multiply_adds / 1e9:.2f}"]
        minutes = statistics.median(each.seconds for each in own) / 60
        scores = [spread(values) for values in zip(*(each.figures() for each in own), strict=True)]
        lines.append(cells([f"`{model}`", str(len(own)), *scores, *size, f"{minutes:.0f}"]))
    plain = {each.seed: each for each in runs if each.model == models[0]}
    lines += ["", cells([f"Gain over `{models[0]}`", "Seeds", *heads]), cells(["---", "---:", *["---:"] * len(heads)])]
    for model in models[1:]:
        pairs = [(each, plain[each.seed]) for each in runs if each.model == model and each.seed in plain]
        gains = [[a - b for a, b in zip(ours.figures(), base.figures(), strict=True)] for ours, base in pairs]
        if gains:
            scores = [spread(values, sign="+") for values in zip(*gains, strict=True)]
            lines.append(cells([f"`{model}`", str(len(gains)), *scores]))
    return lines


def spread(values: Sequence[float], sign: str = "") -> str:
    """The mean with the standard deviation over seeds, where there are several."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def cells(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"


def page() -> None:
    """Put the table of all logs into the page."""
    runs = [Run.load(path) for path in sorted(LOGS.glob("*.jsonl"))]
    if not runs:
        raise SystemExit(f"no logs in {LOGS}: python benchmarks/evidence/short_runs.py run camvid:ROOT makes them")
    write_between("results", table(runs))
    print(f"wrote the table of {len(runs)} runs in {PAGE}")


def write_between(name: str, lines: Sequence[str]) -> None:
    """Put the lines between the page's two markers of that name."""
    begin, end = (f"<!-- {name}:{edge} -->" for edge in ("begin", "end"))
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(begin) if text.count(begin) == 1 else (text, "")
    if rest.count(end) != 1:
        raise SystemExit(f"{PAGE} has not one {begin} with one {end} after it, expected both to write between")
    tail = rest.partition(end)[2]
    write_text(PAGE, "\n".join([head + begin, "", *lines, "", end + tail]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="train and score what has no log yet")
    runner.add_argument("data", help="camvid:ROOT")
    runner.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    runner.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), metavar="N")
    runner.add_argument("--folder", type=Path, default=ROOT / "runs" / "evidence", help="of checkpoints")
    commands.add_parser("page", help="make docs/results.md anew")
    options = parser.parse_args()
    if options.command == "page":
        page()
        return
    recipe = Recipe.load(RECIPE)
    for seed in options.seeds:
        for model in options.models:
            run(options.data, dataclasses.replace(recipe, model=model, seed=seed), options.folder)


if __name__ == "__main__":
    main()
