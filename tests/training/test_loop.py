"""Training tiny networks: what is learned, written and reported, batch by batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ddsm_zoo.metrics import ConfusionMatrix
from ddsm_zoo.training.loop import ProgressEvent, fit
from ddsm_zoo.training.losses import SegmentationLoss
from tests.support.errors import raises
from tests.support.tiny_training import (
    CLASSES,
    Blobs,
    Linear,
    Net,
    assert_same_outcome,
    epochs_of,
    fresh,
    log_of,
    recipe,
    run,
)


def test_it_learns_and_writes_what_it_says(tmp_path: Path) -> None:
    model = fresh()
    summary = run(tmp_path, recipe(epochs=10), model, count=32)
    assert summary["best_miou"] > 0.6
    assert not summary["interrupted"]
    start, *epochs = log_of(tmp_path)
    assert start["event"] == "start"
    assert start["recipe"] == recipe(epochs=10).to_plain()
    assert "torch" in start["versions"]
    assert [line["epoch"] for line in epochs] == list(range(1, 11))
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert all(line["lr"] > 0 and line["images_per_second"] > 0 and len(line["iou"]) == CLASSES for line in epochs)
    assert max(line["miou"] for line in epochs) == summary["best_miou"]
    assert epochs[summary["best_epoch"] - 1]["miou"] == summary["best_miou"]
    last = safetensors.torch.load_file(summary["last"])
    assert all(torch.equal(last[name], tensor) for name, tensor in model.state_dict().items())


def test_the_score_is_that_of_the_weights_on_disk_over_images_of_different_sizes(tmp_path: Path) -> None:
    val_set = Blobs(9, sizes=((6, 8), (6, 8), (5, 7)))
    summary = fit(fresh(), recipe(epochs=2, ema_decay=0.5), Blobs(12), val_set, tmp_path)
    model = Net().eval()
    model.load_state_dict(safetensors.torch.load_file(summary["last"]))
    confusion = ConfusionMatrix(CLASSES)
    for image, mask in (val_set[index] for index in range(9)):
        confusion.update(model(image[None]).argmax(1), mask[None])
    assert summary["miou"] == confusion.compute()["miou"]


def test_workers_see_the_epoch_and_change_nothing(tmp_path: Path) -> None:
    run(tmp_path / "here", recipe(epochs=2))
    run(tmp_path / "there", recipe(epochs=2, workers=1))
    assert_same_outcome(tmp_path / "there", tmp_path / "here")
    assert epochs_of(tmp_path / "here")[0]["loss"] != epochs_of(tmp_path / "here")[1]["loss"]


@pytest.mark.parametrize(("count", "expected"), [(3, [3]), (4, [4]), (9, [4, 4])])
def test_a_smaller_last_batch_is_dropped_unless_it_is_all_there_is(
    tmp_path: Path, count: int, expected: list[int]
) -> None:
    class Counting(Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                sizes.append(len(x))
            return super().forward(x)

    sizes: list[int] = []
    run(tmp_path, recipe(epochs=1), fresh(Counting), count=count)
    assert sizes == expected


def test_each_epoch_is_another_order_of_all_images(tmp_path: Path) -> None:
    class Recording(Blobs):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            seen.append(index)
            return super().__getitem__(index)

    seen: list[int] = []
    data = Recording(8)
    fit(fresh(), recipe(epochs=3), data, Blobs(2), tmp_path)
    orders = [seen[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert data.epochs == [0, 1, 2]


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    class Clean(Blobs):
        """Every image has equally many valid pixels, so that means of means are means."""

    for name, options in {"large": {}, "small": {"batch_size": 2, "gradient_accumulation": 2}}.items():
        fit(fresh(Linear), recipe(epochs=2, **options), Clean(8), Clean(2), tmp_path / name)
    large, small = (
        safetensors.torch.load_file(tmp_path / name / "last" / "model.safetensors") for name in ("large", "small")
    )
    torch.testing.assert_close(large, small)


def test_the_last_group_of_batches_may_be_smaller(tmp_path: Path) -> None:
    """Five batches in twos: the fifth weighs as much as a whole step, not as half of one."""
    run(tmp_path / "a", recipe(epochs=1, batch_size=2, gradient_accumulation=5), fresh(Linear), count=6)
    run(tmp_path / "b", recipe(epochs=1, batch_size=2, gradient_accumulation=3), fresh(Linear), count=6)
    assert_same_outcome(tmp_path / "a", tmp_path / "b")


def test_published_weights_are_the_moving_average(tmp_path: Path) -> None:
    snapshots: list[dict[str, Tensor]] = []
    model = fresh()

    def watch(event: ProgressEvent) -> None:
        if event.phase == "train":
            snapshots.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    run(tmp_path, recipe(ema_decay=0.3), model, progress=watch)
    expected = {name: tensor for name, tensor in snapshots[0].items() if tensor.is_floating_point()}
    for step, snapshot in enumerate(snapshots[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * snapshot[name] for name, value in expected.items()}
    published = safetensors.torch.load_file(tmp_path / "last" / "model.safetensors")
    torch.testing.assert_close({name: published[name] for name in expected}, expected)


class WithAuxiliary(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(3, CLASSES, 1)

    def forward(self, x: Tensor, auxiliary: bool = False) -> Tensor | dict[str, Tensor]:
        logits = super().forward(x)
        return {"out": logits, "aux": self.auxiliary(x)} if auxiliary else logits


def test_the_auxiliary_head_adds_its_share_and_is_not_published(tmp_path: Path) -> None:
    model = fresh(WithAuxiliary)
    data = Blobs(4)
    images, masks = (torch.stack(parts) for parts in zip(*(data[index] for index in range(4)), strict=True))
    loss = SegmentationLoss(dice=0.5)
    expected = loss(model(images), masks) + 0.25 * loss(model.auxiliary(images), masks)
    before = model.auxiliary.weight.clone()
    fit(model, recipe(epochs=1, dice=0.5, auxiliary_weight=0.25), data, Blobs(1), tmp_path)
    assert epochs_of(tmp_path)[0]["loss"] == pytest.approx(expected.item())
    assert not torch.equal(model.auxiliary.weight, before)
    assert set(safetensors.torch.load_file(tmp_path / "last" / "model.safetensors")) == {"weight", "bias"}


def test_validation_comes_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=5, validate_every=2))
    assert ["miou" in line for line in epochs_of(tmp_path)] == [False, True, False, True, True]


def test_progress_counts_steps_of_the_run_and_images_of_a_validation(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    run(tmp_path, recipe(epochs=2), progress=events.append)
    assert [(e.phase, e.epoch, e.done, e.total) for e in events] == [
        *(("train", 1, step, 6) for step in (1, 2, 3)),
        *(("validate", 1, images, 5) for images in (4, 5)),
        *(("train", 2, step, 6) for step in (4, 5, 6)),
        *(("validate", 2, images, 5) for images in (4, 5)),
    ]


def test_precision_may_change_between_runs_of_one_process(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Watching(Linear):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            seen.append(logits.dtype)
            return logits

    for precision in ("bf16", "no"):
        run(tmp_path / precision, recipe(epochs=1, precision=precision), fresh(Watching), count=4)
    assert seen[0] == torch.bfloat16
    assert seen[-1] == torch.float32
    for name in ("bf16", "no"):
        state = safetensors.torch.load_file(tmp_path / name / "last" / "model.safetensors")
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    model = fresh(Linear)
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    run(tmp_path, recipe(epochs=1, clip_norm=1e-3, weight_decay=0.0, lr=1.0), model, count=4)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("train_count", "val_count", "name"), [(0, 1, "training"), (1, 0, "validation")])
def test_empty_sets_are_refused(tmp_path: Path, train_count: int, val_count: int, name: str) -> None:
    with raises(ValueError, kind="missing-split", name=name, got=0):
        fit(fresh(), recipe(), Blobs(train_count), Blobs(val_count), tmp_path)
    assert not list(tmp_path.iterdir())
