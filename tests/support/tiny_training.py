"""Tiny networks to train, and what a run of one leaves behind. Equal means equal to the bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddsm_zoo import create_model
from ddsm_zoo.training.loop import Hooks, ProgressEvent, fit
from ddsm_zoo.training.recipe import Recipe

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


class Uneven(Blobs):
    """Blobs whose void is anything from none of an image to all of it, and which remember who was asked for."""

    def __init__(self, count: int, size: tuple[int, int] = (6, 8)) -> None:
        super().__init__(count, sizes=(size,))
        self.seen: list[int] = []

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.seen.append(index)
        image, mask = super().__getitem__(index)
        mask.view(-1)[: 16 * index % 49 * mask.numel() // 48] = 255
        return image, mask


class Net(nn.Module):
    num_classes = CLASSES

    def __init__(self, dropout: float = 0.3, norm: str = "batch") -> None:
        super().__init__()
        # Before a norm a bias has no gradient but rounding, of which AdamW makes whole steps.
        convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.backbone = nn.Sequential(
            convolution, nn.BatchNorm2d(8) if norm == "batch" else nn.GroupNorm(2, 8), nn.ReLU()
        )
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


class Doubled(nn.Module):
    """A model of the zoo in float64: rounding, which its many norms over few values magnify, stays far below 1e-5."""

    num_classes = CLASSES

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = create_model(name, num_classes=CLASSES, dropout=0.0, norm="group").double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.double())
        return logits


class Crash(Exception):
    """Stands for a kill: nothing is saved on its way out."""


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"model": "net", "epochs": 3, "batch_size": 4, "workers": 0, "lr": 0.1, **fields})


def fresh(kind: Callable[[], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(7)
    return kind()


def build_network(network: str) -> nn.Module:
    """A network by its name here or in the zoo, without what differs by process: dropout and batch statistics."""
    kinds: dict[str, Callable[[], nn.Module]] = {"Linear": Linear, "Net": lambda: Net(dropout=0.0, norm="group")}
    return fresh(kinds.get(network, lambda: Doubled(network)))


def size_for(network: str) -> tuple[int, int]:
    """The size of the images it is trained on."""
    return (6, 8) if network in ("Linear", "Net") else (64, 96)


def run(
    out: Path,
    recipe: Recipe,
    model: nn.Module | None = None,
    count: int = 14,
    resume: bool = False,
    **hooks: Any,
) -> dict[str, Any]:
    return fit(model or fresh(), recipe, Blobs(count), Blobs(5), out, resume=resume, hooks=Hooks(**hooks))


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
