"""Fine-tuning on small data: the recipe ``finetune`` against the loop that people write around smp's decoders.

``python -m benchmarks.finetune fields membrane=ROOT --out runs/finetune`` trains and scores every cell that has no
result yet, and prints the table. A cell is a data set, a method and a seed.

Each method gets the epochs that fit into the same processor time, by the cost of its training step measured first. If
the package's run took longer than that, by what it does besides its steps, smp's loop gets as long on that seed. All
start from ImageNet or task weights of the same encoder, see the same crops and flips, and are scored by the same
confusion matrix in numpy, after the last step, on images of their own size.

``--variants`` changes one setting of the recipe at a time, and trains each variant as long as the recipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.finetune.cells import epochs_within, run_cell
from benchmarks.finetune.data import prepare
from benchmarks.finetune.plan import METHODS, OURS, RATES, VARIANTS, Plan
from benchmarks.finetune.table import insert, render_table
from ddsm_zoo.utils.allocator import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells without a result and print the table. Returns the exit status: 2 for bad input."""
    keep_freed_memory()  # for all methods alike, as the package's training would turn it on for those after it
    options = _parser().parse_args(arguments)
    plan = Plan(**{name: getattr(options, name) for name in asdict(Plan())})
    options.methods = [*options.methods, *(f"{OURS}, {name}" for name in options.variants)]
    try:
        data = [prepare(name, options.out, plan) for name in options.data]
        for method in () if options.table else options.methods:  # all at the start, under the same load
            epochs_within(method, data[0], options.out, plan, plan.seconds)
        for root in data:
            for seed in options.seeds:
                for method in options.methods:
                    if not options.table:
                        run_cell(method, root, seed, options, plan)
        variants = options.methods[-len(options.variants) :] if options.variants else []
        table = render_table(options.out, data, [*METHODS, *variants], options.seeds, plan)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table)
    if options.page:
        insert(options.page, table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__)
    parser.add_argument("data", nargs="+", help="fields (rendered), or NAME=ROOT with images/, masks/ and labels.json")
    parser.add_argument("--out", type=Path, required=True, help="folder of data and results")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, choices=RATES, help="of smp's loop, on seed 0")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that there are")
    parser.add_argument("--page", type=Path, help="also write the table between the markers of this page")
    parser.add_argument("--variants", nargs="+", default=[], choices=VARIANTS, help="of the recipe, as more methods")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{value} unless given")
    return parser


if __name__ == "__main__":
    sys.exit(main())
