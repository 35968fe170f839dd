"""Cells, each a data set, a method and a seed: their trainings, costs and results."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.finetune.data import classes_of, files, iou_of, read
from benchmarks.finetune.methods import cost_of_step, train_ours, train_plain
from benchmarks.finetune.plan import DECODERS, OURS, RATES, Plan, Result
from ddsm_zoo.utils.files import write_json

_LEAST = 2  # epochs


def run_cell(method: str, root: Path, seed: int, options: argparse.Namespace, plan: Plan) -> None:
    """Train and score a cell that has no result: ours once, the plain loop at each rate that is still open."""
    out: Path = options.out
    ours = results_of(OURS, root, seed, out, plan)
    # The package's training also checks, validates and draws: smp's loop gets the time of all that
    own = method not in DECODERS
    seconds = plan.seconds if own or not ours else max(plan.seconds, ours[0].seconds)
    epochs = epochs_within(method, root, out, plan, seconds)
    for rate in [0.0] if own else _open_rates(method, root, seed, options, plan):
        path = _cell(out, root, method, seed, rate)
        if path.exists():
            _load(path, plan)
            continue
        torch.manual_seed(seed)
        began = time.process_time()
        if own:
            predict, steps = train_ours(method, root, seed, epochs, out / "work" / path.stem, plan)
        else:
            predict, steps = train_plain(DECODERS[method], root, seed, epochs, rate, plan)
        taken = time.process_time() - began
        iou = iou_of([(mask, predict(image)) for image, mask in read(root, "val")], len(classes_of(root)))
        result = Result(
            miou=round(float(np.nanmean(iou)), 2), iou=[round(value, 2) for value in iou], epochs=epochs, steps=steps,
            seconds=round(taken, 1), rate=rate, plan=asdict(plan),
        )  # fmt: skip
        write_json(path, asdict(result))
        print(f"{path.stem}: mIoU {result.miou} after {steps} steps, {result.seconds} s", file=sys.stderr, flush=True)
        shutil.rmtree(out / "work" / path.stem, ignore_errors=True)


def _open_rates(method: str, root: Path, seed: int, options: argparse.Namespace, plan: Plan) -> Sequence[float]:
    """Return all rates for seed 0, and for other seeds the rate that was best there, if it is known."""
    first = results_of(method, root, 0, options.out, plan)
    return options.rates if seed == 0 or not first else [max(first, key=lambda result: result.miou).rate]


def _cell(out: Path, root: Path, method: str, seed: int, rate: float) -> Path:
    slug = "".join(letter if letter.isalnum() else "-" for letter in method)
    return out / "cells" / f"{root.name}_{slug}_{seed}{f'_{rate:g}' if rate else ''}.json"


def _load(path: Path, plan: Plan) -> Result:
    result = Result(**json.loads(path.read_text(encoding="utf-8")))
    if result.plan != asdict(plan):
        raise ValueError(f"{path} was made with the plan {result.plan}, expected {asdict(plan)}; choose another --out")
    return result


def results_of(method: str, root: Path, seed: int, out: Path, plan: Plan) -> list[Result]:
    """Load the results of a cell, one for each rate."""
    paths = (_cell(out, root, method, seed, rate) for rate in (RATES if method in DECODERS else [0.0]))
    return [_load(path, plan) for path in paths if path.exists()]


def epochs_within(method: str, root: Path, out: Path, plan: Plan, seconds: float) -> int:
    """Return the epochs that fit into the seconds, by the costs in ``out``, which are measured once."""
    method = method if method in DECODERS else OURS
    path = out / "costs.json"
    costs: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if method not in costs:
        costs[method] = cost_of_step(method, len(classes_of(root)), plan)
        write_json(path, costs)
    return max(_LEAST, int(seconds / (costs[method] * len(files(root, "images", "train")))))
