"""Measure whether the loading of images keeps up with the steps of training on them.

    python benchmarks/speed/loading.py camvid_lite0 camvid:ROOT

Three rates in images per second, for each number of loading processes: of the loader alone, of steps on one batch that
is already there, and of both together, as in training. Where the last is near the second, loading costs nothing. The
time to the first batch is what each epoch pays to start its loading processes.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Generator, Iterable

import ddsm_zoo
from ddsm_zoo.data.datasets import SegmentationDataset, open_dataset
from ddsm_zoo.data.transforms import TrainTransform
from ddsm_zoo.training.dataloader import in_batches, load, shuffled
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.train_state import Batch, TrainState


def rate(batches: Iterable[Batch], use: Callable[[Batch], object]) -> float:
    """Images per second."""
    images, began = 0, time.perf_counter()
    for batch in batches:
        use(batch)
        images += len(batch[0])
    return images / (time.perf_counter() - began)


def epochs(
    samples: SegmentationDataset, recipe: Recipe, workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    """Epochs without end, as training reads them."""
    for epoch in itertools.count():
        samples.set_epoch(epoch)
        order = in_batches(shuffled(len(samples), recipe.seed, epoch), recipe.batch_size)
        yield from load(samples, workers=workers, seed=epoch, pin_memory=pin_memory, batch_sampler=order)


def measure(recipe: Recipe, data: str, worker_counts: list[int], steps: int) -> None:
    """Print a row for each number of loading processes."""
    labels = open_dataset(data, "train").labels
    model = ddsm_zoo.create_model(recipe.model, labels=labels, **recipe.overrides)
    preprocess = ddsm_zoo.resolve_data_config(model)
    transform = TrainTransform(
        preprocess, recipe.crop_size, labels.ignore_index, recipe.scale, recipe.flip, recipe.jitter
    )
    samples = open_dataset(data, "train", transform, recipe.seed)
    train_state = TrainState(model, recipe, labels.ignore_index)
    train_state.train_mode()

    def learn(batch: Batch) -> None:
        train_state.backward([batch], lambda: False)
        train_state.update(1.0)

    print(f"{'workers':>8} {'loader':>8} {'steps':>8} {'together':>9} {'first batch, s':>15}")
    for workers in worker_counts:
        loader = epochs(samples, recipe, workers, train_state.device.type == "cuda")
        began = time.perf_counter()
        batch = next(loader)
        first = time.perf_counter() - began
        learn(batch)
        learning = rate(itertools.repeat(batch, steps), learn)
        # What lies ready in the queues by now is not what the loader delivers.
        ready = 2 * workers
        rate(itertools.islice(loader, ready), lambda _: None)
        alone = rate(itertools.islice(loader, steps), lambda _: None)
        together = rate(itertools.islice(loader, steps), learn)
        loader.close()
        print(f"{workers:>8} {alone:>8.1f} {learning:>8.1f} {together:>9.1f} {first:>15.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a name of `ddsm-zoo recipes`, or a path")
    parser.add_argument("data", help="camvid:ROOT and the like")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    measure(Recipe.load(arguments.recipe), arguments.data, arguments.workers, arguments.steps)


if __name__ == "__main__":
    main()
