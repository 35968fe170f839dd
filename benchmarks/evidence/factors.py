"""What in our reading of the module helps or hurts: one factor changed at a time, and its part of docs/results.md.

    python benchmarks/evidence/factors.py run camvid:ROOT
    python benchmarks/evidence/factors.py page

``run`` trains ``uper_ddsm_lite0`` with each factor changed, by the recipe and with the batches of evidence.py, and
scores what has no log under docs/results/factors/ yet; it may be stopped and started again at any time. ``page`` makes
the table anew. A variant is no model of the zoo: it exists here alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddsm_zoo import create_model, resolve_data_config
from ddsm_zoo.cli.console import training_bar
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.splits import open_training_sets
from ddsm_zoo.data.transforms import EvalTransform, TrainTransform
from ddsm_zoo.layers import ChannelAffinity, ConvNormAct, DynamicSampler, SpatialAffinity, resize
from ddsm_zoo.models import Segmenter
from ddsm_zoo.models.upernet import UPerNet
from ddsm_zoo.ops.traced import sample
from ddsm_zoo.training.loop import Hooks, train
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.zoo.safetensors_io import read_tensors
from ddsm_zoo.zoo.state_dict import load_weights
from short_runs import LOGS, PAGE, RECIPE, ROOT, Run, cells, spread, write_between, write_log

MODEL, PLAIN = "uper_ddsm_lite0", "uper_lite0"
FOLDER = LOGS / "factors"


class WithUpsampling(nn.Module):
    """The module beside the upsampled high that it replaces: low + up(high) + S + K."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        fused: Tensor = self.fusion(low, high)
        return fused + resize(high, (low.shape[-2], low.shape[-1]))


class ScaledOffsets(DynamicSampler):
    """A sampler whose offsets are multiplied by ``factor``.

    With AdamW, whose steps do not depend on the size of a gradient, that is a rate of so much; 0 is a fixed grid.
    """

    factor: float

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        offset, modulation = super().forward(features)
        return self.factor * offset, modulation


class ScaledSoftmax(SpatialAffinity):
    """Eq. 2 with the logits over the square root of the length of query and key, as those of Eq. 3 are here."""

    def project(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().project(low, high)
        return query / math.sqrt(query.shape[1]), key, value


class SeparateSampling(SpatialAffinity):
    """Eq. 2 with offsets and modulations of its own for the value, predicted from the value."""

    value_sampler: DynamicSampler

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        query, key, value = self.project(low, high)
        taps = self.sampler.kernel_size
        (key_offset, key_modulation), (offset, modulation) = self.sampler(key), self.value_sampler(value)
        sampled_key = sample(key, key_offset, taps) * key_modulation[:, None]
        affinity = (query[:, :, None] * sampled_key).sum(dim=1).softmax(dim=1)
        out = (affinity[:, None] * sample(value, offset, taps) * modulation[:, None]).sum(dim=2)
        projected: Tensor = self.out(out)
        return projected


class BareValues(SpatialAffinity):
    """Eq. 2 with the positional embeddings in query and key alone: they choose, and are not carried along."""

    def project(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, _ = super().project(low, high)
        projected = resize(self.high_projection(high), (low.shape[-2], low.shape[-1])).to(key.dtype)
        return query, key, projected.chunk(2, dim=1)[1]


def parts(model: Segmenter, *kinds: type[nn.Module]) -> list[Any]:
    return [module for module in model.decoder.modules() if isinstance(module, kinds)]


def upsample_too(model: Segmenter) -> None:
    (decoder,) = parts(model, UPerNet)
    decoder.fusions = nn.ModuleList(WithUpsampling(fusion) for fusion in decoder.fusions)


def smooth_too(model: Segmenter) -> None:
    (decoder,) = parts(model, UPerNet)
    width, separable = model.config.width, model.config.separable
    decoder.smoothings = nn.ModuleList(ConvNormAct(width, width, 3, separable=separable) for _ in decoder.smoothings)


def leave_rough(model: Segmenter) -> None:
    (decoder,) = parts(model, UPerNet)
    decoder.smoothings = nn.ModuleList(nn.Identity() for _ in decoder.smoothings)


def upsample_and_smooth(model: Segmenter) -> None:
    upsample_too(model)
    smooth_too(model)


def scale_offsets(model: Segmenter, factor: float) -> None:
    for sampler in parts(model, DynamicSampler):
        sampler.__class__, sampler.factor = ScaledOffsets, factor


def scale_softmax(model: Segmenter) -> None:
    for affinity in parts(model, SpatialAffinity):
        affinity.__class__ = ScaledSoftmax


def sample_separately(model: Segmenter) -> None:
    for affinity in parts(model, SpatialAffinity):
        affinity.__class__ = SeparateSampling
        affinity.value_sampler = DynamicSampler(model.config.ddsm.width, model.config.ddsm.pixels)


def start_open(model: Segmenter) -> None:
    for sampler in parts(model, DynamicSampler):
        nn.init.constant_(sampler.predict.bias[2 * sampler.samples :], 4.0)


def start_silent(model: Segmenter) -> None:
    for affinity in parts(model, SpatialAffinity, ChannelAffinity):
        nn.init.zeros_(affinity.out.weight)
        nn.init.zeros_(affinity.out.bias)


def forget_positions(model: Segmenter) -> None:
    for affinity in parts(model, SpatialAffinity):
        for table in (*affinity.low_position.parameters(), *affinity.high_position.parameters()):
            nn.init.zeros_(table).requires_grad_(False)


def bare_values(model: Segmenter) -> None:
    for affinity in parts(model, SpatialAffinity):
        affinity.__class__ = BareValues


def keep(model: Segmenter) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Factor:
    """``change`` is made to the built model, ``config`` changes what it is built from."""

    title: str
    change: Callable[[Segmenter], None] = keep
    config: Mapping[str, Any] = field(default_factory=dict)
    model: str = MODEL


FACTORS = {
    "upsample": Factor(title="up(high) beside low + S + K", change=upsample_too),
    "smooth": Factor(title="the smoothing convolutions stay, after the modules", change=smooth_too),
    "offset-rate": Factor(title="offsets at a tenth of the rate", change=partial(scale_offsets, factor=0.1)),
    "silent": Factor(title="S and K begin at zero", change=start_silent),
    "scale": Factor(title="logits of S over the root of their length", change=scale_softmax),
    "pool": Factor(title="`a` = 8, not 16", config={"pool": 8}),
    "separate": Factor(title="in S, the value is sampled by offsets of its own", change=sample_separately),
    "positions": Factor(title="no positional embeddings", change=forget_positions),
    "bare-values": Factor(title="positional embeddings in query and key, not in the value", change=bare_values),
    "open": Factor(title="modulations begin at 0.98, not 0.5", change=start_open),
    "grid": Factor(title="no offsets: a fixed grid", change=partial(scale_offsets, factor=0.0)),
    "plain-rough": Factor(title="the plain decoder without smoothing convolutions", change=leave_rough, model=PLAIN),
    "upsample-smooth": Factor(title="up(high) and the smoothing convolutions", change=upsample_and_smooth),
}


def run(data: str, name: str, recipe: Recipe, folder: Path) -> None:
    """Train and score one variant with the recipe's seed, unless its log is there already."""
    factor, title = FACTORS[name], f"{name}_seed{recipe.seed}"
    log = FOLDER / f"{title}.jsonl"
    if log.exists():
        return
    print(title, flush=True)
    recipe = dataclasses.replace(recipe, model=factor.model, overrides=dict(factor.config))
    labels = open_dataset(data, "train").labels
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.model, labels=labels, pretrained_backbone=True, **factor.config)
    factor.change(model)
    preprocess = dataclasses.replace(resolve_data_config(model), size=None, min_size=recipe.min_size)
    transform = TrainTransform(
        preprocess, recipe.crop_size, labels.ignore_index, recipe.scale, recipe.flip, recipe.jitter
    )
    train_set, val_set, _ = open_training_sets(data, recipe.holdout, transform, EvalTransform(preprocess), recipe.seed)
    out = folder / title
    with training_bar() as show:
        summary = train(
            model,
            recipe,
            train_set,
            val_set,
            out,
            ignore_index=labels.ignore_index,
            resume=True,
            hooks=Hooks(progress=show),
        )
    if summary["interrupted"]:
        raise SystemExit(f"{title} was interrupted and its state saved: the same command goes on with it")
    load_weights(model, read_tensors(Path(summary["best"])), summary["best"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    write_log(log, out, model, data, {"factor": name, "parameters": parameters, "model": recipe.model})


def table(runs: Mapping[str, Sequence[Run]], plain: Sequence[Run]) -> list[str]:
    """A row for each factor: its scores, and what they gain over those of the module and of the plain decoder.

    ``runs`` has the runs of the module by "", beside those of the factors.
    """
    heads = ["mIoU", "F mean"]
    over = [f"{head} over `{model}`" for model in (MODEL, PLAIN) for head in heads]
    lines = [cells(["Changed", "Seeds", *heads, *over]), cells(["---", *["---:"] * (1 + len(heads) + len(over))])]
    for name in ("", *(name for name in FACTORS if name in runs)):
        scores = [spread(values) for values in zip(*(both(run) for run in runs[name]), strict=True)]
        scores += [*gains(runs[name], runs[""] if name else ()), *gains(runs[name], plain)]
        lines.append(cells([FACTORS[name].title if name else "nothing", str(len(runs[name])), *scores]))
    lines += ["", cells(["Smoothing convolutions", "Seeds", *(f"{head}, module over plain" for head in heads)])]
    lines.append(cells(["---", *["---:"] * (1 + len(heads))]))
    for title, ours, base in (
        ("in neither", runs[""], runs.get("plain-rough", ())),
        ("in both", runs.get("smooth", ()), plain),
    ):
        seeds = {run.seed for run in ours} & {run.seed for run in base}
        lines.append(cells([title, str(len(seeds)), *gains(ours, base)]))
    return lines


def gains(runs: Sequence[Run], base: Sequence[Run]) -> list[str]:
    """What mIoU and the mean boundary F-score gain, over the seeds that both have."""
    seeds = {run.seed: both(run) for run in base}
    pairs = [(both(run), seeds[run.seed]) for run in runs if run.seed in seeds]
    differences = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
    return [spread(values, sign="+") for values in zip(*differences, strict=True)] or ["-", "-"]


def both(run: Run) -> tuple[float, float]:
    """mIoU and the mean boundary F-score, in percent."""
    return run.figures()[0], run.figures()[-1]


def page() -> None:
    runs = {name: [Run.load(path) for path in sorted(FOLDER.glob(f"{name}_seed*.jsonl"))] for name in FACTORS}
    equal = {model: [Run.load(path) for path in sorted(LOGS.glob(f"{model}_seed*.jsonl"))] for model in (MODEL, PLAIN)}
    missing = [model for model, each in equal.items() if not each]
    if missing:
        raise SystemExit(f"no logs of {' and '.join(missing)} in {LOGS}: evidence.py makes them")
    done = {name: each for name, each in runs.items() if each}
    write_between("factors", table({"": equal[MODEL], **done}, equal[PLAIN]))
    print(f"wrote the table of {sum(map(len, done.values()))} runs in {PAGE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="train and score what has no log yet")
    runner.add_argument("data", help="camvid:ROOT")
    runner.add_argument("--factors", nargs="+", choices=FACTORS, default=list(FACTORS), metavar="NAME")
    runner.add_argument("--seeds", nargs="+", type=int, default=(0,), metavar="N")
    runner.add_argument("--folder", type=Path, default=ROOT / "runs" / "factors", help="of checkpoints")
    commands.add_parser("page", help="make the table in docs/results.md anew")
    options = parser.parse_args()
    if options.command == "page":
        page()
        return
    recipe = Recipe.load(RECIPE)
    for seed in options.seeds:
        for name in options.factors:
            run(options.data, name, dataclasses.replace(recipe, seed=seed), options.folder)


if __name__ == "__main__":
    main()
