"""How well outlines are met: the boundary F-score of the paper's Table 2, and Boundary IoU (Cheng et al., CVPR 2021).

Both look at 2 x 2 blocks of pixels: a block that holds more than one class is where an outline runs. All classes of an
image are treated at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_zoo.metrics.confusion import iou_of
from ddsm_zoo.metrics.ids import check_num_classes, comparable_ids

# The published radii as shares of an image's diagonal: 3, 5, 9, 12 pixels at 2048 x 1024, 1, 2, 3, 3 at 480 x 360
DIAGONAL_SHARES = (0.00088, 0.001875, 0.00375, 0.005)
_BITS = 31  # classes in the bits of an int32 that leave its sign alone


class BoundaryFScore:
    """F-score of the outline pixels of each class and image, matched within a disk of each radius.

    The outline of a class are the pixels whose right, lower or lower right neighbour is on the other side of it; void
    pixels are on the other side for prediction and target alike. Precision is the share of predicted outline pixels
    with a target outline pixel of the class at most a radius away, recall the reverse. A class without an outline in
    both scores 1, one with an outline in one of them 0.

    ``counts`` (2 + len(measures), num_classes) float64 on the CPU: images, images in which the class occurs in
    prediction or target, and the sums of F over the latter for each radius.

    Args:
        num_classes: Number of classes.
        radii: Radii in pixels, the same for every image. None for the published ones, `DIAGONAL_SHARES`: each image's
            own diagonal times the share, rounded up to whole pixels.
        ignore_index: Class id of pixels that do not count.

    Raises:
        ValueError: For radii that are not whole numbers of pixels, and for one that is there twice.
    """

    def __init__(self, num_classes: int, radii: Sequence[int] | None = None, ignore_index: int = 255) -> None:
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.radii = None if radii is None else check_radii(radii)
        self.ignore_index = ignore_index
        self.counts = torch.zeros(2 + len(self.measures), num_classes, dtype=torch.float64)

    @property
    def measures(self) -> tuple[int | float, ...]:
        """Key of each F-score: its radius in pixels as an int, or its share of the diagonal as a float below 1."""
        return DIAGONAL_SHARES if self.radii is None else self.radii

    def pixels(self, height: int, width: int) -> tuple[int, ...]:
        """Radius of each measure in an image of this size. Two shares of a small image may come to the same radius."""
        if self.radii is not None:
            return self.radii
        return tuple(math.ceil(share * math.hypot(height, width)) for share in DIAGONAL_SHARES)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Score the images of integer class ids ``pred`` and ``target``, both (N, H, W) or one image (H, W).

        Raises ValueError as `ConfusionMatrix.update` does, and for another number of dimensions.
        """
        for predicted, true in _images(pred, target, self.num_classes, self.ignore_index):
            self.counts += self._score(predicted, true)

    def merge(self, other: BoundaryFScore) -> None:
        """Add the images of ``other``. Raises ValueError for other classes or radii."""
        ours = (self.num_classes, self.radii, self.ignore_index)
        theirs = (other.num_classes, other.radii, other.ignore_index)
        if ours != theirs:
            raise ValueError(f"cannot merge scores of (classes, radii, ignored) {theirs} into {ours}")
        self.counts += other.counts

    def reset(self) -> None:
        self.counts.zero_()

    def compute(self) -> dict[Any, Any]:
        """The mean F over all images and classes by `measures`, and under ``"mean"`` the mean over these.

        A class that is absent from an image counts as 1 there, as in the published protocol. ``"present_only"`` holds
        the same figures of the stricter variant: for each class the mean over the images in which it occurs in
        prediction or target, then the mean over the classes that occur. Each is nan without anything to score.
        """
        return {**self._summary(present_only=False), "present_only": self._summary(present_only=True)}

    def _summary(self, present_only: bool) -> dict[Any, float]:
        scores = f_scores_of(self.counts, present_only).nanmean(-1)
        return {**dict(zip(self.measures, scores.tolist(), strict=True)), "mean": scores.mean().item()}

    def _score(self, pred: Tensor, target: Tensor) -> Tensor:
        """The counts of one image, (H, W) each with void as one more class."""
        present = torch.bincount(torch.cat([pred.flatten(), target.flatten()]), minlength=self.num_classes + 1)[:-1] > 0
        radii = self.pixels(*pred.shape)
        sums = torch.zeros(len(radii), self.num_classes, dtype=torch.float64, device=pred.device)
        canvas = _Canvas(pred.shape[0], pred.shape[1], radii)
        outlines = [_mixed_blocks(ids) for ids in (pred, target)]
        found = present.nonzero().flatten()
        for start in range(0, len(found), _BITS):
            classes = found[start : start + _BITS]
            bit = torch.zeros(self.num_classes + 1, dtype=torch.int32, device=pred.device)  # 0 for void
            bit[classes] = 1 << torch.arange(len(classes), dtype=torch.int32, device=pred.device)
            sums[:, classes] = _f_scores(canvas, [(places, _union(bit[block])) for places, block in outlines], classes)
        return torch.stack([torch.ones_like(sums[0]), present.double(), *sums]).cpu()


class BoundaryIoU:
    """IoU of the pixels of each class that lie within ``ratio`` of the image's diagonal from its outline.

    Distances are Chebyshev (L-infinity), at least 1 pixel; an image's border is an outline too, and so is the edge of
    void pixels. Counts add up over the images before the ratio is taken, as for mIoU.

    ``counts`` (3, num_classes) int64 on the CPU: the pixels near the outline of each class in both, in the target and
    in the prediction.
    """

    def __init__(self, num_classes: int, ratio: float = 0.02, ignore_index: int = 255) -> None:
        check_num_classes(num_classes)
        if not 0 < ratio < 1:
            raise ValueError(f"ratio is {ratio}, expected a share of the image's diagonal, more than 0 and less than 1")
        self.num_classes = num_classes
        self.ratio = ratio
        self.ignore_index = ignore_index
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count the images of integer class ids ``pred`` and ``target``, both (N, H, W) or one image (H, W).

        Raises ValueError as `BoundaryFScore.update` does.
        """
        for predicted, true in _images(pred, target, self.num_classes, self.ignore_index):
            distance = max(1, round(self.ratio * math.hypot(*true.shape)))
            near_true, near_predicted = _near_outline(true, distance), _near_outline(predicted, distance)
            both = near_true & near_predicted & (true == predicted)
            regions = (true[both], true[near_true], predicted[near_predicted])
            sums = [torch.bincount(ids, minlength=self.num_classes + 1)[: self.num_classes] for ids in regions]
            self.counts += torch.stack(sums).cpu()

    def merge(self, other: BoundaryIoU) -> None:
        """Add the counts of ``other``. Raises ValueError for other classes or another ratio."""
        ours = (self.num_classes, self.ratio, self.ignore_index)
        theirs = (other.num_classes, other.ratio, other.ignore_index)
        if ours != theirs:
            raise ValueError(f"cannot merge counts of (classes, ratio, ignored) {theirs} into {ours}")
        self.counts += other.counts

    def reset(self) -> None:
        self.counts.zero_()

    def compute(self) -> dict[str, Any]:
        """``boundary_iou``, the mean over the classes that occur, and ``iou`` by class id, nan for the others."""
        iou = iou_of(self.counts)
        return {"boundary_iou": iou.nanmean().item(), "iou": iou.tolist()}


def check_radii(radii: Sequence[int]) -> tuple[int, ...]:
    """Radii in pixels as ints. Raises ValueError as `BoundaryFScore` does."""
    if not radii or any(radius < 0 or radius != int(radius) for radius in radii):
        raise ValueError(
            f"boundary radii are {tuple(radii)}, expected one or more whole numbers of pixels, 0 or more; "
            "leave them out for the published shares of the image's diagonal"
        )
    if len(set(radii)) < len(radii):
        raise ValueError(f"boundary radii are {tuple(radii)}, expected each of them once")
    return tuple(int(radius) for radius in radii)


def f_scores_of(counts: Tensor, present_only: bool) -> Tensor:
    """Mean F over images (..., R, K) from `BoundaryFScore.counts` (..., 2 + R, K) of R measures."""
    images, present, sums = counts[..., :1, :], counts[..., 1:2, :], counts[..., 2:, :]
    return sums / present if present_only else (sums + images - present) / images


def _images(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of images (H, W) in which ``num_classes`` stands for void, in both of them."""
    pred, target, counted = comparable_ids(pred, target, num_classes, ignore_index)
    if pred.ndim not in (2, 3):
        raise ValueError(f"pred and target have shape {tuple(pred.shape)}, expected images (N, H, W) or (H, W)")
    shape = (-1, *pred.shape[-2:])
    # 32 bits hold any class, and what follows is bound by memory
    images = [ids.int().masked_fill_(~counted, num_classes).reshape(shape) for ids in (pred, target)]
    return list(zip(*images, strict=True))


class _Canvas:
    """An image in one row of numbers, with a margin of the largest radius around it, in which to grow sets of pixels.

    Each pixel holds a set of classes as the bits of a number, so that all classes grow at once.
    """

    def __init__(self, height: int, width: int, radii: Sequence[int]) -> None:
        self.radii = tuple(radii)
        self.margin = max(self.radii)
        self.pitch = width + 2 * self.margin
        self.size = (height + 2 * self.margin) * self.pitch
        # For each half width of a disk's rows: the disk, and how far the row is from its middle
        self.rows: dict[int, list[tuple[int, int]]] = {}
        for index, radius in enumerate(self.radii):
            for y in range(-radius, radius + 1):
                self.rows.setdefault(math.isqrt(radius * radius - y * y), []).append((index, y))

    def place(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (rows + self.margin) * self.pitch + columns + self.margin

    def grown(self, at: Tensor, places: Tensor, sets: Tensor) -> Tensor:
        """What ``sets`` at ``places`` become at the places ``at`` when grown by a disk of each radius, (R, len(at))."""
        drawn = sets.new_zeros(self.size)
        drawn[places] = sets
        wide = drawn.clone()  # grown sideways, a pixel more each time; margins keep rows from meeting
        result = sets.new_zeros(len(self.radii), len(at))
        for width in range(self.margin + 1):
            if width:
                wide[width:] |= drawn[:-width]
                wide[:-width] |= drawn[width:]
            for index, y in self.rows.get(width, ()):
                result[index] |= wide[at + y * self.pitch]
        return result


def _f_scores(canvas: _Canvas, outlines: Sequence[tuple[tuple[Tensor, Tensor], Tensor]], classes: Tensor) -> Tensor:
    """F (R, len(classes)) of two outlines: rows and columns of pixels, and the sets of classes (bits) at each."""
    places = [canvas.place(*position) for position, _ in outlines]
    sets = [each for _, each in outlines]
    lengths = [_count_bits(each, len(classes)) for each in sets]
    shares = []
    for ours, theirs in ((0, 1), (1, 0)):
        met = sets[ours] & canvas.grown(places[ours], places[theirs], sets[theirs])
        shares.append(_count_bits(met, len(classes)) / lengths[ours])
    precision, recall = shares
    f_score = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)  # none met, or no outline in one
    return torch.where(lengths[0] + lengths[1] == 0, 1.0, f_score)


def _count_bits(sets: Tensor, bits: int) -> Tensor:
    """How many of the numbers (..., P) have each of the lowest ``bits`` bits, (..., bits) float64."""
    return torch.stack([(sets >> bit & 1).sum(-1) for bit in range(bits)], -1).double()


def _union(sets: Tensor) -> Tensor:
    """Of the sets (4, P) of a block's pixels."""
    return sets[0] | sets[1] | sets[2] | sets[3]


def _mixed_blocks(ids: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Rows and columns of the pixels that outlines run through, and the ids (4, P) in the blocks they begin.

    Every class in a block of several has its outline there. Beyond the border a pixel is its own neighbour.
    """
    padded = torch.cat([ids, ids[-1:]])
    padded = torch.cat([padded, padded[:, -1:]], 1)
    rows, columns = _mixed(padded).nonzero(as_tuple=True)
    block = [padded[rows + down, columns + right] for down in (0, 1) for right in (0, 1)]
    return (rows, columns), torch.stack(block)


def _mixed(ids: Tensor) -> Tensor:
    """(H - 1, W - 1) bool: whether the block of 2 x 2 pixels right of and below each pixel holds several ids."""
    first = ids[:-1, :-1]
    return (first != ids[:-1, 1:]) | (first != ids[1:, :-1]) | (first != ids[1:, 1:])


def _near_outline(ids: Tensor, distance: int) -> Tensor:
    """(H, W) bool: whether a square of ``distance`` pixels around a pixel leaves the image or holds another class.

    A square holds one class if all 2 x 2 blocks in it do; an integral image counts those that do not.
    """
    height, width = ids.shape
    near = torch.ones(height, width, dtype=torch.bool, device=ids.device)
    if min(height, width) <= 2 * distance:
        return near
    total = F.pad(_mixed(ids).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0))
    side = 2 * distance  # in blocks
    count = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    near[distance : height - distance, distance : width - distance] = count > 0
    return near
