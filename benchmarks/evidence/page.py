"""Write the tables of docs/results.md from the logs of finished cells."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.cell import OtherRunError, describe_training, require_same
from benchmarks.evidence.matrix import Cell, Matrix
from benchmarks.evidence.paired import ALPHA, LEVEL, MARGIN, Paired, holm, paired, verdict
from ddsm_zoo.utils.files import write_text

PRIMARY_RADIUS = "0.00088"  # the smallest published share of the diagonal: 1 px at 480 x 360
OTHER_RADII = ("0.001875", "0.00375", "0.005", "mean")
_HALVES = {"spatial": "S", "channel": "C"}  # by the last part of a sampler's name

RULES = f"""\
Fixed before the first run:

- **Cells.** A cell is one training: an arm, a fold and a seed. The model is trained on the other
  sequences (or blocks) and scored on the held-out one. The scored weights are those of the last step,
  averaged over steps, so nothing is selected on the held-out fold. With the same seed, all arms see
  the same batches, unless they are variants of the recipe, and tensors that they share have the same
  initial values.
- **Measures.** Primary: mIoU over the classes that occur in the held-out fold, and boundary F at the
  smallest published radius, 0.088 % of the diagonal (1 px at 480 x 360 and at 512 x 512). The other
  radii, their mean and Boundary IoU are reported without a verdict. All are in percentage points.
- **Differences** are paired: an arm minus the baseline with the same fold and seed. The interval is
  the {LEVEL:.0%} t interval over the n pairs. Pairs of one fold are not independent, so with several
  seeds it is too narrow. "Over folds" is the interval over the means of the folds, without Holm's
  adjustment. A verdict of help or harm requires that this interval excludes 0 too. Equivalence is
  tested over the pairs alone.
- **Verdict**, for each primary measure of an arm. *Equivalent*: two one-sided t tests reject
  differences of {MARGIN} points or more in both directions (the larger p value, "p equivalence", is
  below {ALPHA}). Else *help* or *harm*, by the sign: the two-sided paired t test, adjusted by Holm's
  method for the two primary measures, has p below {ALPHA}. Else *undecided*.
- **The question** is the treatment against the baseline. The other arms help to explain the answer;
  with so many arms, some differ by chance.
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished cell: its score line, training time, and taps on the map at the end by half."""

    score: Mapping[str, Any]
    seconds: float
    taps: Mapping[str, tuple[float, ...]]
    images: Mapping[str, Any]  # of the fold: their numbers and the hash of their names

    @classmethod
    def load(cls, path: Path, wanted: Mapping[str, Any]) -> Result:
        """Read a log whose first line has all that is ``wanted``.

        Raises ValueError for a log without a score, and OtherRunError for one of another cell or recipe.
        """
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            score = next(line for line in reversed(lines) if line["event"] == "score")
            epochs = [line for line in lines if line["event"] == "epoch"]
            taps: dict[str, tuple[float, ...]] = defaultdict(tuple)
            for name, share in epochs[-1].get("taps_on_map", {}).items():
                taps[_HALVES.get(name.rpartition(".")[2], "other")] += (share,)
            score["miou"], score["boundary_f"][PRIMARY_RADIUS]
            images = lines[0]["images"]
        except (ValueError, LookupError, StopIteration, TypeError) as error:
            raise ValueError(f"{path} is not the log of a finished cell; remove it and run the matrix again") from error
        require_same(path, json.dumps(lines[0]), wanted)
        return cls(score=score, seconds=sum(epoch["seconds"] for epoch in epochs), taps=taps, images=images)


Measure = Callable[[Result], float]
Results = Mapping[Cell, Result]


def write_page(matrices: Sequence[tuple[Matrix, Path]], page: Path) -> int:
    """Put the rules and the tables of each matrix between their markers in ``page``, or make the page.

    Args:
        matrices: each matrix with the folder of its logs.
        page: Markdown with ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` for "rules" and each matrix.

    Returns:
        The number of cells without a log.

    Raises:
        ValueError: a log cannot be read, or the page has not exactly one pair of markers. The page stays as it was.
    """
    loaded = [(matrix, load_results(matrix, logs)) for matrix, logs in matrices]
    names = ["rules", *(matrix.name for matrix, _ in loaded)]
    sections = [RULES, *("\n".join(section(matrix, results)) for matrix, results in loaded)]
    if page.exists():
        text = page.read_text(encoding="utf-8")
    else:
        blocks = (f"## {name}\n\n<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in names)
        text = "\n".join(["# Results\n", *blocks])
    for name, content in zip(names, sections, strict=True):
        text = between_markers(text, name, content, page)
    write_text(page, text)
    return sum(len(matrix.cells()) - len(results) for matrix, results in loaded)


def load_results(matrix: Matrix, logs: Path) -> dict[Cell, Result]:
    """The finished cells of a matrix.

    Raises:
        ValueError: a log cannot be read, is of another recipe, or has other images than the other logs of its fold.
    """
    results: dict[Cell, Result] = {}
    for cell in matrix.cells():
        path = logs / f"{cell.name}.jsonl"
        if path.exists():
            result = Result.load(path, describe_training(matrix, cell))
            others = [each for other, each in results.items() if other.fold == cell.fold]
            if others and others[0].images != result.images:
                raise OtherRunError(f"{path} has other images than the other logs of fold {cell.fold}; remove one kind")
            results[cell] = result
    return results


def between_markers(text: str, name: str, content: str, page: Path) -> str:
    """``text`` with ``content`` between the markers of that name. Raises ValueError unless there is one pair."""
    begin, end = (f"<!-- {name}:{edge} -->" for edge in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{page} has not one {begin} with one {end} after it, expected both to write between")
    return f"{text.partition(begin)[0]}{begin}\n\n{content.strip()}\n\n{end}{text.partition(end)[2]}"


def section(matrix: Matrix, results: Results) -> list[str]:
    """The lines of one matrix: arms, paired differences, each pair of the treatment, and missing cells."""
    recipe = matrix.recipe_of(matrix.cells()[0])
    runs = matrix.runs()
    lines = [
        f"Recipe `{matrix.recipe}`, {recipe.epochs} epochs, {len(matrix.folds.folds)} folds "
        f"({', '.join(matrix.folds.folds)}), {len(runs)} runs of each arm; {len(results)} of "
        f"{len(matrix.cells())} cells are finished.",
    ]
    if results:
        lines += ["", *_arms(matrix, results), *_differences(matrix, results), *_pairs(matrix, results)]
    return [*lines, *_missing(matrix, results)]


def _miou(result: Result) -> float:
    return 100 * float(result.score["miou"])


def _boundary_f(radius: str) -> Measure:
    return lambda result: 100 * float(result.score["boundary_f"][radius])


def _boundary_iou(result: Result) -> float:
    return 100 * float(result.score["boundary_iou"])


def _primary(results: Results) -> dict[str, Measure]:
    return {"mIoU": _miou, f"F {_pixels(results, PRIMARY_RADIUS)}": _boundary_f(PRIMARY_RADIUS)}


def _others(results: Results) -> dict[str, Measure]:
    named = {radius: "F mean" if radius == "mean" else f"F {_pixels(results, radius)}" for radius in OTHER_RADII}
    if len(set(named.values())) < len(named):  # two shares may come to the same radius
        named = {key: name if key == "mean" else f"{name} ({100 * float(key):g} %)" for key, name in named.items()}
    return {**{name: _boundary_f(radius) for radius, name in named.items()}, "Boundary IoU": _boundary_iou}


def _pixels(results: Results, radius: str) -> str:
    found = {pixels for result in results.values() for pixels in result.score["boundary_f_pixels"][radius]}
    return f"{' or '.join(map(str, sorted(found)))} px"


def _arms(matrix: Matrix, results: Results) -> list[str]:
    """Means and costs of each arm."""
    primary = _primary(results)
    heads = [
        "Arm",
        "Model",
        "Runs",
        *primary,
        "Taps S",
        "Taps C",
        "Taps other",
        "Params (M)",
        "Multiply-adds (G)",
        "Wall minutes",
    ]
    rows = []
    for name, arm in matrix.arms.items():
        own = [result for cell, result in results.items() if cell.arm == name]
        if own:
            means = [f"{_over_folds(results, name, measure):.2f}" for measure in primary.values()]
            cost = [f"{own[0].score['params'] / 1e6:.2f}", f"{own[0].score['multiply_adds'] / 1e9:.2f}"]
            minutes = f"{statistics.median(result.seconds for result in own) / 60:.0f}"
            taps = [_taps(own, half) for half in ("S", "C", "other")]
            rows.append([f"`{name}`", arm.title or arm.model, str(len(own)), *means, *taps, *cost, minutes])
    size = " x ".join(map(str, reversed(next(iter(results.values())).score["size"])))
    note = (
        f"Scores are means over folds. Taps: share on the map after training, mean (lowest). Multiply-adds at {size}. "
    )
    note += "Minutes are the wall time of the training steps, with other work on the same cores."
    return [*_table(heads, rows, text=2), "", note]


def _over_folds(results: Results, arm: str, measure: Measure) -> float:
    """The mean over folds of the mean over the seeds of a fold."""
    folds: dict[str, list[float]] = defaultdict(list)
    for cell, result in results.items():
        if cell.arm == arm:
            folds[cell.fold].append(measure(result))
    return statistics.fmean(statistics.fmean(values) for values in folds.values())


def _taps(results: Iterable[Result], half: str) -> str:
    shares = [share for result in results for share in result.taps.get(half, ())]
    return f"{statistics.fmean(shares):.0%} ({min(shares):.0%})" if shares else "-"


def _differences(matrix: Matrix, results: Results) -> list[str]:
    """Every arm against the baseline: a table for each primary measure, and one for the others."""
    arms = [name for name in matrix.arms if name != matrix.baseline and _paired_runs(matrix, results, name)]
    if not arms:
        return []
    primary = {
        arm: {head: paired(_gains(matrix, results, arm, measure)) for head, measure in _primary(results).items()}
        for arm in arms
    }
    lines = []
    for head in _primary(results):
        heads = [f"{head} over `{matrix.baseline}`", "Pairs", "Difference", f"{LEVEL:.0%} interval", "Over folds"]
        heads += ["p (Holm)", "p equivalence", "Verdict"]
        rows = []
        for arm in arms:
            result = primary[arm][head]
            adjusted = dict(zip(primary[arm], holm([each.p for each in primary[arm].values()]), strict=True))[head]
            over_folds = paired(_fold_gains(matrix, results, arm, _primary(results)[head]))
            p_values = [_p(adjusted), _p(result.p_equivalent), borne_out(result, over_folds, adjusted)]
            intervals = [_interval(result), _interval(over_folds)]
            rows.append([f"`{arm}`", str(result.n), f"{result.mean:+.2f}", *intervals, *p_values])
        lines += ["", *_table(heads, rows)]
    lines += _over_controls(matrix, results)
    others = _others(results)
    rows = []
    for arm in arms:
        found = [paired(_gains(matrix, results, arm, measure)) for measure in others.values()]
        rows.append([f"`{arm}`", *(f"{each.mean:+.2f} {_interval(each)}" for each in found)])
    return [*lines, "", *_table([f"Others over `{matrix.baseline}`", *others], rows)]


def _over_controls(matrix: Matrix, results: Results) -> list[str]:
    """The treatment against every other arm, fold by fold: what it adds to each control."""
    primary = _primary(results)
    rows = []
    for arm in matrix.arms:
        if arm not in (matrix.treatment, matrix.baseline) and _paired_runs(matrix, results, matrix.treatment, arm):
            found = [
                paired(_fold_gains(matrix, results, matrix.treatment, measure, arm)) for measure in primary.values()
            ]
            rows.append([f"`{arm}`", *(f"{each.mean:+.2f} {_interval(each)}" for each in found)])
    heads = [f"`{matrix.treatment}` over", *(f"{head}, over folds" for head in primary)]
    return ["", *_table(heads, rows)] if rows else []


def _pairs(matrix: Matrix, results: Results) -> list[str]:
    """The treatment against the baseline, pair by pair."""
    primary = _primary(results)
    rows = []
    for fold, seed in _paired_runs(matrix, results, matrix.treatment):
        ours, base = (results[Cell(arm=arm, fold=fold, seed=seed)] for arm in (matrix.treatment, matrix.baseline))
        scores = [f"{measure(ours):.2f} - {measure(base):.2f}" for measure in primary.values()]
        rows.append([fold, str(seed), *scores])
    heads = ["Fold", "Seed", *(f"{head}, `{matrix.treatment}` - `{matrix.baseline}`" for head in primary)]
    return ["", *_table(heads, rows)] if rows else []


def _paired_runs(matrix: Matrix, results: Results, arm: str, base: str | None = None) -> list[tuple[str, int]]:
    return [
        (fold, seed)
        for fold, seed in matrix.runs()
        if all(Cell(arm=each, fold=fold, seed=seed) in results for each in (arm, base or matrix.baseline))
    ]


def _gains(matrix: Matrix, results: Results, arm: str, measure: Measure, base: str | None = None) -> list[float]:
    return [
        measure(results[Cell(arm=arm, fold=fold, seed=seed)])
        - measure(results[Cell(arm=base or matrix.baseline, fold=fold, seed=seed)])
        for fold, seed in _paired_runs(matrix, results, arm, base)
    ]


def _fold_gains(matrix: Matrix, results: Results, arm: str, measure: Measure, base: str | None = None) -> list[float]:
    """The gains of `_gains`, as one mean for each fold."""
    folds: dict[str, list[float]] = defaultdict(list)
    gains = _gains(matrix, results, arm, measure, base)
    for (fold, _), gain in zip(_paired_runs(matrix, results, arm, base), gains, strict=True):
        folds[fold].append(gain)
    return [statistics.fmean(values) for values in folds.values()]


def borne_out(pairs: Paired, folds: Paired, adjusted: float) -> str:
    """The verdict over the pairs, where the folds bear it out."""
    found = verdict(pairs, adjusted)
    borne_out = folds.low > 0 or folds.high < 0
    return found if found in ("equivalent", "undecided") or borne_out else "undecided"


def _missing(matrix: Matrix, results: Results) -> list[str]:
    runs = matrix.runs()
    lines = []
    for arm in matrix.arms:
        absent = [run for run in runs if Cell(arm=arm, fold=run[0], seed=run[1]) not in results]
        if absent:
            listed = (
                "all runs" if len(absent) == len(runs) else ", ".join(f"{fold} seed {seed}" for fold, seed in absent)
            )
            lines.append(f"- `{arm}`: {listed}")
    return ["", "Missing:", "", *lines] if lines else []


def _interval(result: Paired) -> str:
    return "-" if math.isnan(result.low) else f"[{result.low:+.2f}, {result.high:+.2f}]"


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> list[str]:
    """Markdown with the first ``text`` columns to the left and the others to the right."""
    edges = [*["---"] * text, *["---:"] * (len(heads) - text)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, edges, *rows)]
