"""Training tiny networks: what is learnt, written, resumed and refused. Equal means equal to the bit."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ddsm_zoo.engine.checkpoint import CheckpointError, load_state
from ddsm_zoo.engine.losses import SegmentationLoss
from ddsm_zoo.engine.recipe import Recipe
from ddsm_zoo.engine.train import ProgressEvent, TrainingDiverged, train
from ddsm_zoo.files import OutputError
from ddsm_zoo.metrics import ConfusionMatrix

CLASSES = 3


class Blobs:
    """Noise whose class is its strongest channel; the noise is a function of (epoch, index)."""

    def __init__(self, count: int, sizes: tuple[tuple[int, int], ...] = ((6, 8),)) -> None:
        self.count, self.sizes, self.epoch = count, sizes, 0
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.epochs.append(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        image = torch.randn(3, *self.sizes[index % len(self.sizes)], generator=generator)
        mask = image.argmax(0)
        mask[0, 0] = 255
        return image, mask


class Net(nn.Module):
    num_classes = CLASSES

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.backbone(x)))
        return logits


class Linear(nn.Conv2d):
    """One 1 x 1 convolution: nothing but the loss stands between the data and the step."""

    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__(3, CLASSES, 1)


class Crash(Exception):
    """Stands for a kill: nothing is saved on its way out."""


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"model": "net", "epochs": 3, "batch_size": 4, "workers": 0, "lr": 0.1, **fields})


def fresh(kind: Callable[[], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(7)
    return kind()


def run(out: Path, recipe: Recipe, model: nn.Module | None = None, count: int = 14, **options: Any) -> dict[str, Any]:
    return train(model or fresh(), recipe, Blobs(count), Blobs(5), out, **options)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def epochs_of(out: Path) -> list[dict[str, Any]]:
    clocks = ("seconds", "validation_seconds", "images_per_second")
    return [
        {key: value for key, value in line.items() if key not in clocks}
        for line in log_of(out)
        if line["event"] == "epoch"
    ]


def assert_same_outcome(out: Path, expected: Path) -> None:
    for name in ("last/model.safetensors", "best/model.safetensors"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    assert epochs_of(out) == epochs_of(expected)


def at_step(number: int, action: Callable[[], object]) -> Callable[[ProgressEvent], None]:
    def watch(event: ProgressEvent) -> None:
        if (event.phase, event.done) == ("train", number):
            action()

    return watch


def crash() -> None:
    raise Crash


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


FULL = {"ema_decay": 0.9, "gradient_accumulation": 2, "optimizer": "adamw", "lr": 0.01, "warmup_steps": 2}


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
    summary = train(fresh(), recipe(epochs=2, ema_decay=0.5), Blobs(12), val_set, tmp_path)
    model = Net().eval()
    model.load_state_dict(safetensors.torch.load_file(summary["last"]))
    confusion = ConfusionMatrix(CLASSES)
    for image, mask in (val_set[index] for index in range(9)):
        confusion.update(model(image[None]).argmax(1), mask[None])
    assert summary["miou"] == confusion.compute()["miou"]


@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_run_that_died_goes_on_as_if_it_had_not(tmp_path: Path, options: dict[str, Any], step: int) -> None:
    run(tmp_path / "whole", recipe(**options))
    with pytest.raises(Crash):
        run(tmp_path / "died", recipe(**options), progress=at_step(step, crash))
    run(tmp_path / "died", recipe(**options), resume=True)
    assert_same_outcome(tmp_path / "died", tmp_path / "whole")


@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_ctrl_c_saves_the_step_in_hand(tmp_path: Path, options: dict[str, Any], step: int) -> None:
    run(tmp_path / "whole", recipe(**options))
    handler = signal.getsignal(signal.SIGINT)
    # The signal comes while step + 1 is in hand.
    summary = run(tmp_path / "left", recipe(**options), progress=at_step(step, interrupt))
    assert summary["interrupted"]
    assert signal.getsignal(signal.SIGINT) is handler
    steps_per_epoch = 2 if options else 3
    position = load_state(tmp_path / "left" / "last" / "state.pt")["position"]
    assert position["epoch"] * steps_per_epoch + position["step"] == step + 1
    summary = run(tmp_path / "left", recipe(**options), resume=True)
    assert not summary["interrupted"]
    assert_same_outcome(tmp_path / "left", tmp_path / "whole")


def test_a_second_ctrl_c_is_not_held_up(tmp_path: Path) -> None:
    def watch(_: ProgressEvent) -> None:
        interrupt()
        interrupt()

    handler = signal.default_int_handler  # a shell that runs the tests in the background ignores SIGINT
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, recipe(), progress=watch)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_outside_the_main_thread(tmp_path: Path) -> None:
    summaries: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: summaries.append(run(tmp_path, recipe(epochs=1))))
    thread.start()
    thread.join()
    assert summaries[0]["epochs"] == 1


def test_kill_minus_nine(tmp_path: Path) -> None:
    run(tmp_path / "whole", recipe(epochs=40, ema_decay=0.9))
    script = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_train as t
        t.torch.set_num_threads(1)
        die = t.at_step(100, lambda: os.kill(os.getpid(), t.signal.SIGKILL))
        t.run(t.Path(sys.argv[1]), t.recipe(epochs=40, ema_decay=0.9), progress=die)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "killed")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert load_state(tmp_path / "killed" / "last" / "state.pt")["position"]["epoch"] == 33
    run(tmp_path / "killed", recipe(epochs=40, ema_decay=0.9), resume=True)
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


def test_a_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    first = run(tmp_path, recipe())
    before = (tmp_path / "last" / "state.pt").read_bytes()
    assert run(tmp_path, recipe(), resume=True) == first
    assert (tmp_path / "last" / "state.pt").read_bytes() == before


def test_resuming_what_never_began_begins(tmp_path: Path) -> None:
    run(tmp_path / "plain", recipe())
    run(tmp_path / "resumed", recipe(), resume=True)
    assert_same_outcome(tmp_path / "resumed", tmp_path / "plain")


def test_a_run_is_not_overwritten_nor_continued_with_something_else(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=2))
    before = (tmp_path / "last" / "state.pt").read_bytes()
    with pytest.raises(CheckpointError, match="holds the state of a run: resume it, or choose another folder"):
        run(tmp_path, recipe(epochs=2))
    with pytest.raises(CheckpointError, match="made with another lr; resume with the recipe of that run"):
        run(tmp_path, recipe(epochs=3, lr=0.2), resume=True)
    with pytest.raises(CheckpointError, match="made on 14 training images, got 15"):
        run(tmp_path, recipe(epochs=2), count=15, resume=True)
    with pytest.raises(CheckpointError, match="does not fit this model") as error:
        run(tmp_path, recipe(epochs=2), fresh(Linear), resume=True)
    assert "\n" not in str(error.value)
    assert (tmp_path / "last" / "state.pt").read_bytes() == before
    (tmp_path / "last" / "state.pt").write_bytes(before[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        run(tmp_path, recipe(epochs=2), resume=True)


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
    train(fresh(), recipe(epochs=3), data, Blobs(2), tmp_path)
    orders = [seen[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert data.epochs == [0, 1, 2]


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    class Clean(Blobs):
        """Every image has equally many valid pixels, so that means of means are means."""

    for name, options in {"large": {}, "small": {"batch_size": 2, "gradient_accumulation": 2}}.items():
        train(fresh(Linear), recipe(epochs=2, **options), Clean(8), Clean(2), tmp_path / name)
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

    def forward_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), self.auxiliary(x)


def test_the_auxiliary_head_adds_its_share_and_is_not_published(tmp_path: Path) -> None:
    model = fresh(WithAuxiliary)
    data = Blobs(4)
    images, masks = (torch.stack(parts) for parts in zip(*(data[index] for index in range(4)), strict=True))
    loss = SegmentationLoss(dice=0.5)
    expected = loss(model(images), masks) + 0.25 * loss(model.auxiliary(images), masks)
    before = model.auxiliary.weight.clone()
    train(model, recipe(epochs=1, dice=0.5, auxiliary_weight=0.25), data, Blobs(1), tmp_path)
    assert epochs_of(tmp_path)[0]["loss"] == pytest.approx(expected.item())
    assert not torch.equal(model.auxiliary.weight, before)
    assert set(safetensors.torch.load_file(tmp_path / "last" / "model.safetensors")) == {"weight", "bias"}


class Poisoned(Blobs):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = super().__getitem__(index)
        return image * float("nan") if self.epoch == 1 else image, mask


def test_a_diverged_run_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="the loss is nan in epoch 2, step 1: .* lower lr") as error:
        train(fresh(), recipe(), Poisoned(8), Blobs(2), tmp_path)
    assert "\n" not in str(error.value)
    assert load_state(tmp_path / "last" / "state.pt")["position"]["epoch"] == 1
    assert all(
        torch.isfinite(t).all() for t in safetensors.torch.load_file(tmp_path / "last/model.safetensors").values()
    )


class SpoiltByItsGradient(Linear):
    """The loss is finite and its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift.abs().sqrt()


def test_weights_spoilt_by_the_last_step_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="is not finite in epoch 1"):
        run(tmp_path, recipe(batch_size=14), fresh(SpoiltByItsGradient))
    assert not (tmp_path / "last").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files, which Windows cannot")
def test_a_full_disk_keeps_the_old_state(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = at_step(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1])))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*state\.pt: ") as error:
            run(tmp_path / "full", recipe(), progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    run(tmp_path / "full", recipe(), resume=True)
    run(tmp_path / "whole", recipe())
    assert_same_outcome(tmp_path / "full", tmp_path / "whole")


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
    with pytest.raises(ValueError, match=f"the {name} set has 0 images, expected at least 1"):
        train(fresh(), recipe(), Blobs(train_count), Blobs(val_count), tmp_path)
    assert not list(tmp_path.iterdir())
