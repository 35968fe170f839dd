"""The items of a data set: their randomness, and those that are rendered or come from anywhere."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddsm_zoo.data.datasets import Pair, SegmentationDataset, camvid, open_dataset
from ddsm_zoo.data.masks import CAMVID_IDS
from ddsm_zoo.labels import CAMVID
from tests.support.data_sets import IDS, IMAGE, expect_one_line, write


def draw(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A transform that shows its random numbers."""
    return torch.rand(4), torch.randint(1000, (4,))


def drawn(dataset: SegmentationDataset, epoch: int, index: int) -> tuple[float, ...]:
    dataset.set_epoch(epoch)
    return tuple(dataset[index][0].tolist())


def test_randomness_is_a_function_of_seed_epoch_and_index(segnet: Path) -> None:
    seen = {}
    for seed in (0, 1):
        dataset = camvid(segnet, "train", draw, seed)
        for epoch, index in ((0, 0), (0, 1), (1, 0), (1, 1), (7, 0)):
            torch.manual_seed(epoch * 31 + index)
            seen[seed, epoch, index] = drawn(dataset, epoch, index)
    assert len(set(seen.values())) == len(seen)
    for seed, epoch, index in reversed(seen):
        torch.rand(3)
        assert drawn(camvid(segnet, "train", draw, seed), epoch, index) == seen[seed, epoch, index]


def test_the_global_generator_is_left_alone(segnet: Path) -> None:
    dataset = camvid(segnet, "train", draw)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    dataset[0]
    assert torch.equal(torch.rand(2), expected)


def test_persistent_workers_follow_the_epoch(segnet: Path) -> None:
    dataset = camvid(segnet, "train", draw)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        through_worker = [tuple(image.tolist()) for image, _ in loader]
        assert through_worker == [drawn(dataset, epoch, index) for index in range(2)]


def test_data_sets_can_be_pickled(segnet: Path) -> None:
    dataset = camvid(segnet, "train", draw, seed=3)
    dataset.set_epoch(4)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1][0], dataset[1][0])


def test_scenes_are_reproducible_and_splits_share_none() -> None:
    train, val = open_dataset("scenes:3", "train"), open_dataset("scenes:3", "val")
    assert len(train) == 3
    assert train.labels == CAMVID
    image, mask = train[1]
    assert image.dtype == torch.uint8
    assert mask.dtype == torch.int64
    assert image.shape == (3, *mask.shape)
    assert set(mask.unique().tolist()) <= {*range(11), 255}
    assert torch.equal(open_dataset("scenes:50", "train")[1][0], image)
    assert not torch.equal(val[1][0], image)
    assert not {pair.name for pair in train.pairs} & {pair.name for pair in val.pairs}
    expect_one_line(lambda: open_dataset("scenes:3", "test"), "'test'", "train, val")


def test_pairs_may_come_from_anywhere(tmp_path: Path) -> None:
    pair = Pair(write(tmp_path / "photo.png", IMAGE), write(tmp_path / "drawn.png", IDS), "one")
    dataset = SegmentationDataset([pair], CAMVID, CAMVID_IDS, lambda image, mask: (image.float(), mask))
    assert dataset[0][0].dtype == torch.float32
