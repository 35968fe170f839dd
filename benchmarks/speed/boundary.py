"""Time the boundary metrics against dilating class by class with disks, on one core.

    python benchmarks/speed/boundary.py [--json FILE]

Prediction and label are 2048 x 1024 pixels of 19 classes; the F-score takes the four radii of the paper's Table 2.
Needs scikit-image, which `pip install "ddsm-zoo[dev]"` brings; of its dilations by a disk the fastest by far is used.
`straightforward` is also what the tests compare with.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from skimage.morphology import isotropic_dilation

from ddsm_zoo.metrics import BoundaryFScore, BoundaryIoU
from ddsm_zoo.utils.files import to_json, write_json

Ids = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]

HEIGHT, WIDTH, CLASSES = 1024, 2048, 19
RADII = (3, 5, 9, 12)
VOID = 255


def straightforward(
    pred: Ids, target: Ids, num_classes: int, radii: Sequence[int], ignore_index: int = VOID
) -> npt.NDArray[np.float64]:
    """F (len(radii), num_classes) of one image as the protocol reads: a binary mask for each class, outlines, disks."""
    known = target != ignore_index
    scores = np.ones((len(radii), num_classes))
    for label in range(num_classes):
        ours, theirs = outline((pred == label) & known), outline((target == label) & known)
        for row, radius in enumerate(radii):
            scores[row, label] = f_score(ours, theirs, radius)
    return scores


def outline(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbor, where there is one."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def f_score(ours: Mask, theirs: Mask, radius: int) -> float:
    """Of two outlines; 1 if both are empty, 0 if one of them is."""
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = (ours & dilated(theirs, radius)).sum() / ours.sum()
    recall = (theirs & dilated(ours, radius)).sum() / theirs.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def dilated(mask: Mask, radius: int) -> Mask:
    grown: Mask = isotropic_dilation(mask, radius)
    return grown


def street(seed: int) -> tuple[Ids, Ids]:
    """A label of blobs of many sizes with some void, and a prediction whose outlines are off by a few pixels."""
    generator = np.random.default_rng(seed)
    heights = sum(
        scale * enlarged(generator.normal(size=(HEIGHT // scale, WIDTH // scale, CLASSES)).astype(np.float32))
        for scale in (16, 64, 256)
    )
    target = np.argmax(heights, -1)
    shift = [np.rint(6 * enlarged(generator.normal(size=(16, 32, 1)))[..., 0]).astype(int) for _ in range(2)]
    rows = np.clip(np.arange(HEIGHT)[:, None] + shift[0], 0, HEIGHT - 1)
    columns = np.clip(np.arange(WIDTH)[None] + shift[1], 0, WIDTH - 1)
    pred = target[rows, columns]
    target[-60:] = VOID
    return pred, target


def enlarged(field: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(field, -1, 0)]
    return np.stack([np.asarray(plane.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for plane in planes], -1)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Processor time of the shortest of ``repeats`` runs: other work on the machine must not count."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pred, target = street(seed=0)
    tensors = torch.from_numpy(pred), torch.from_numpy(target)
    f_metric, iou_metric = BoundaryFScore(CLASSES, RADII), BoundaryIoU(CLASSES)
    figures = {
        "size": [HEIGHT, WIDTH],
        "classes": CLASSES,
        "radii": RADII,
        "outline_pixels": sum(int(outline(target == label).sum()) for label in range(CLASSES)),
        "boundary_f_seconds": seconds(lambda: f_metric.update(*tensors), 5),
        "boundary_iou_seconds": seconds(lambda: iou_metric.update(*tensors), 5),
    }
    oracle = straightforward(pred, target, CLASSES, RADII)
    figures["scikit_image_seconds"] = seconds(lambda: straightforward(pred, target, CLASSES, RADII), 1)
    ours = f_metric.compute()
    figures["largest_difference"] = max(
        abs(ours[radius] - score) for radius, score in zip(RADII, oracle.mean(1), strict=True)
    )
    print(to_json(figures), end="")
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
