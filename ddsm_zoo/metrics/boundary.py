"""Boundary metrics: the F-score of the paper's Table 2 and Boundary IoU (Cheng et al., CVPR 2021).

Both look at blocks of 2 x 2 pixels. A block with more than one class lies on an outline. All classes of an image are
processed together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.metrics.confusion import iou_of
from ddsm_zoo.metrics.ids import check_num_classes, comparable_ids, id_count, without_background

# Published radii as shares of an image's diagonal: 3, 5, 9, 12 pixels at 2048 x 1024, 1, 2, 3, 3 at 480 x 360
DIAGONAL_SHARES = (0.00088, 0.001875, 0.00375, 0.005)
_BITS = 31  # classes in the bits of an int32, without its sign bit


class BoundaryFScore:
    """F-score of the outline pixels of each class and image, matched within a disk of each radius.

    The outline of a class consists of the pixels whose right, lower or lower right neighbor is on the other side of
    it. Ignored pixels are on the other side, in prediction and target alike. Precision is the share of predicted
    outline pixels with a target outline pixel of the class within the radius. Recall is the reverse. A class without an
    outline in both scores 1, one with an outline in only one of them scores 0.

    ``counts`` (2 + len(measures), num_classes) is float64 on the CPU. It holds the number of images, the number of
    images in which the class occurs in prediction or target, and for each radius the sum of F over the latter.

    Args:
        num_classes: Number of classes.
        radii: Radii in pixels, the same for every image. None for the published ones, `DIAGONAL_SHARES`: the share
            times each image's own diagonal, rounded up to whole pixels.
        ignore_index: Class id of pixels that do not count.

    Raises:
        ValueError: A radius is not a whole number of pixels, or occurs twice.
    """

    def __init__(self, num_classes: int, radii: Sequence[int] | None = None, ignore_index: int = 255) -> None:
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.radii = None if radii is None else check_radii(radii)
        self.ignore_index = ignore_index
        self.counts = torch.zeros(2 + len(self.measures), id_count(num_classes), dtype=torch.float64)

    @property
    def measures(self) -> tuple[int | float, ...]:
        """Key of each F-score: its radius in pixels as an int, or its share of the diagonal as a float below 1."""
        return DIAGONAL_SHARES if self.radii is None else self.radii

    def pixels(self, height: int, width: int) -> tuple[int, ...]:
        """Return the radius of each measure in pixels, for an image of ``height`` x ``width`` pixels.

        In a small image, two shares may give the same radius.
        """
        if self.radii is not None:
            return self.radii
        return tuple(math.ceil(share * math.hypot(height, width)) for share in DIAGONAL_SHARES)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Score images.

        Args:
            pred: Predicted class ids, integers (N, H, W), or (H, W) for one image.
            target: Labeled class ids, in the same shape.

        Raises:
            ValueError: As `ConfusionMatrix.update`, or another number of dimensions.
        """
        for predicted, true in _images(pred, target, self.num_classes, self.ignore_index):
            self.counts += self._score(predicted, true)

    def merge(self, other: BoundaryFScore) -> None:
        """Add the counts of ``other``. Raises ValueError if its classes or radii differ."""
        ours = (self.num_classes, self.radii, self.ignore_index)
        theirs = (other.num_classes, other.radii, other.ignore_index)
        if ours != theirs:
            text = f"cannot merge scores of (classes, radii, ignored) {theirs} into {ours}"
            raise ArgumentError(text, got=theirs, expected=ours)
        self.counts += other.counts

    def reset(self) -> None:
        self.counts.zero_()

    def compute(self) -> dict[Any, Any]:
        """Compute the mean F over all images and classes.

        A class that is absent from an image counts as 1 there, as in the published protocol. ``"present_only"`` is the
        stricter variant. It averages each class over the images in which it occurs in prediction or target, then
        averages over the classes that occur.

        Returns:
            Fractions from 0 to 1 by key of `measures`, with their mean under ``"mean"`` and the same keys again under
            ``"present_only"``. Each is nan if there is nothing to score.
        """
        return {**self._summary(present_only=False), "present_only": self._summary(present_only=True)}

    def _summary(self, present_only: bool) -> dict[Any, float]:
        scores = without_background(f_scores_of(self.counts, present_only), self.num_classes).nanmean(-1)
        return {**dict(zip(self.measures, scores.tolist(), strict=True)), "mean": scores.mean().item()}

    def _score(self, pred: Tensor, target: Tensor) -> Tensor:
        """Count one image, (H, W) each, with the ignored pixels as one more class."""
        ids = id_count(self.num_classes)
        present = torch.bincount(torch.cat([pred.flatten(), target.flatten()]), minlength=ids + 1)[:-1] > 0
        radii = self.pixels(*pred.shape)
        sums = torch.zeros(len(radii), ids, dtype=torch.float64, device=pred.device)
        canvas = _Canvas(pred.shape[0], pred.shape[1], radii)
        outlines = [_mixed_blocks(ids) for ids in (pred, target)]
        found = present.nonzero().flatten()
        for start in range(0, len(found), _BITS):
            classes = found[start : start + _BITS]
            bit = torch.zeros(ids + 1, dtype=torch.int32, device=pred.device)  # 0 for ignored pixels
            bit[classes] = 1 << torch.arange(len(classes), dtype=torch.int32, device=pred.device)
            sums[:, classes] = _f_scores(canvas, [(places, _union(bit[block])) for places, block in outlines], classes)
        return torch.stack([torch.ones_like(sums[0]), present.double(), *sums]).cpu()


class BoundaryIoU:
    """IoU of the pixels of each class that lie close to its outline.

    Distances are Chebyshev (L-infinity), at least 1 pixel. An image's border counts as an outline, and so does the edge
    of ignored pixels. Counts add up over the images before the ratio is taken, as for mIoU.

    ``counts`` (3, num_classes) is int64 on the CPU. It holds the pixels near the outline of each class in both, in the
    target and in the prediction.

    Args:
        num_classes: Number of classes.
        ratio: Largest distance from the outline, as a share of the image's diagonal, more than 0 and less than 1.
        ignore_index: Class id of pixels that do not count.

    Raises:
        ValueError: ``ratio`` is out of range.
    """

    def __init__(self, num_classes: int, ratio: float = 0.02, ignore_index: int = 255) -> None:
        check_num_classes(num_classes)
        if not 0 < ratio < 1:
            raise ArgumentError.of("ratio", ratio, "a share of the image's diagonal, more than 0 and less than 1")
        self.num_classes = num_classes
        self.ratio = ratio
        self.ignore_index = ignore_index
        self.counts = torch.zeros(3, id_count(num_classes), dtype=torch.int64)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count the pixels of images.

        Args:
            pred: Predicted class ids, integers (N, H, W), or (H, W) for one image.
            target: Labeled class ids, in the same shape.

        Raises:
            ValueError: As `BoundaryFScore.update`.
        """
        for predicted, true in _images(pred, target, self.num_classes, self.ignore_index):
            distance = max(1, round(self.ratio * math.hypot(*true.shape)))
            near_true, near_predicted = _near_outline(true, distance), _near_outline(predicted, distance)
            both = near_true & near_predicted & (true == predicted)
            regions = (true[both], true[near_true], predicted[near_predicted])
            count = id_count(self.num_classes)
            sums = [torch.bincount(ids, minlength=count + 1)[:count] for ids in regions]
            self.counts += torch.stack(sums).cpu()

    def merge(self, other: BoundaryIoU) -> None:
        """Add the counts of ``other``. Raises ValueError if its classes or ratio differ."""
        ours = (self.num_classes, self.ratio, self.ignore_index)
        theirs = (other.num_classes, other.ratio, other.ignore_index)
        if ours != theirs:
            text = f"cannot merge counts of (classes, ratio, ignored) {theirs} into {ours}"
            raise ArgumentError(text, got=theirs, expected=ours)
        self.counts += other.counts

    def reset(self) -> None:
        self.counts.zero_()

    def compute(self) -> dict[str, Any]:
        """Compute the scores as fractions from 0 to 1.

        Returns:
            ``boundary_iou``, the mean over the classes that occur, and ``iou`` by class id, nan for the other classes.
        """
        iou = iou_of(self.counts)
        mean = without_background(iou, self.num_classes).nanmean()
        return {"boundary_iou": mean.item(), "iou": iou.tolist()}


def check_radii(radii: Sequence[int]) -> tuple[int, ...]:
    """Return radii in pixels as ints. Raises ValueError as `BoundaryFScore` does."""
    if not radii or any(radius < 0 or radius != int(radius) for radius in radii):
        raise ArgumentError(
            f"boundary radii are {tuple(radii)}, expected one or more whole numbers of pixels, 0 or more; "
            "leave them out for the published shares of the image's diagonal",
            name="radii",
            got=tuple(radii),
        )
    if len(set(radii)) < len(radii):
        raise ArgumentError(
            f"boundary radii are {tuple(radii)}, expected each of them once", name="radii", got=tuple(radii)
        )
    return tuple(int(radius) for radius in radii)


def f_scores_of(counts: Tensor, present_only: bool) -> Tensor:
    """Average F over images, (..., R, K), from `BoundaryFScore.counts` (..., 2 + R, K) of R measures."""
    images, present, sums = counts[..., :1, :], counts[..., 1:2, :], counts[..., 2:, :]
    return sums / present if present_only else (sums + images - present) / images


def _images(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> list[tuple[Tensor, Tensor]]:
    """Split a batch into pairs of images (H, W). In both, one more id marks ignored pixels."""
    pred, target, counted = comparable_ids(pred, target, num_classes, ignore_index)
    if pred.ndim not in (2, 3):
        raise ArgumentError(
            f"pred and target have shape {tuple(pred.shape)}, expected images (N, H, W) or (H, W)",
            kind="array",
            got=tuple(pred.shape),
        )
    shape = (-1, *pred.shape[-2:])
    # 32 bits hold any class, and memory bandwidth limits the rest
    images = [ids.int().masked_fill_(~counted, id_count(num_classes)).reshape(shape) for ids in (pred, target)]
    return list(zip(*images, strict=True))


class _Canvas:
    """Flattened image with a margin of the largest radius, in which sets of pixels are dilated.

    The bits of each pixel's number are a set of classes, so all classes are dilated at once.
    """

    def __init__(self, height: int, width: int, radii: Sequence[int]) -> None:
        self.radii = tuple(radii)
        self.margin = max(self.radii)
        self.pitch = width + 2 * self.margin
        self.size = (height + 2 * self.margin) * self.pitch
        # For each half width of a disk's rows: the disk's index, and the row's distance from the center
        self.rows: dict[int, list[tuple[int, int]]] = {}
        for index, radius in enumerate(self.radii):
            for y in range(-radius, radius + 1):
                self.rows.setdefault(math.isqrt(radius * radius - y * y), []).append((index, y))

    def place(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (rows + self.margin) * self.pitch + columns + self.margin

    def grown(self, at: Tensor, places: Tensor, sets: Tensor) -> Tensor:
        """Dilate ``sets`` at ``places`` by a disk of each radius, and read it at the places ``at``, (R, len(at))."""
        drawn = sets.new_zeros(self.size)
        drawn[places] = sets
        wide = drawn.clone()  # dilated sideways, one pixel more each time; margins keep rows apart
        result = sets.new_zeros(len(self.radii), len(at))
        for width in range(self.margin + 1):
            if width:
                wide[width:] |= drawn[:-width]
                wide[:-width] |= drawn[width:]
            for index, y in self.rows.get(width, ()):
                result[index] |= wide[at + y * self.pitch]
        return result


def _f_scores(canvas: _Canvas, outlines: Sequence[tuple[tuple[Tensor, Tensor], Tensor]], classes: Tensor) -> Tensor:
    """Compute F (R, len(classes)) of two outlines: rows and columns of pixels, and the class sets (bits) at each."""
    places = [canvas.place(*position) for position, _ in outlines]
    sets = [each for _, each in outlines]
    lengths = [_count_bits(each, len(classes)) for each in sets]
    shares = []
    for ours, theirs in ((0, 1), (1, 0)):
        met = sets[ours] & canvas.grown(places[ours], places[theirs], sets[theirs])
        shares.append(_count_bits(met, len(classes)) / lengths[ours])
    precision, recall = shares
    f_score = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)  # no match, or no outline in one
    return torch.where(lengths[0] + lengths[1] == 0, 1.0, f_score)


def _count_bits(sets: Tensor, bits: int) -> Tensor:
    """Count the numbers (..., P) that have each of the lowest ``bits`` bits, (..., bits) float64."""
    return torch.stack([(sets >> bit & 1).sum(-1) for bit in range(bits)], -1).double()


def _union(sets: Tensor) -> Tensor:
    """Unite the sets (4, P) of a block's pixels."""
    return sets[0] | sets[1] | sets[2] | sets[3]


def _mixed_blocks(ids: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Find the rows and columns of the outline pixels, and the ids (4, P) in the blocks that start there.

    Every class in a mixed block has its outline there. Beyond the border, a pixel is its own neighbor.
    """
    padded = torch.cat([ids, ids[-1:]])
    padded = torch.cat([padded, padded[:, -1:]], 1)
    rows, columns = _mixed(padded).nonzero(as_tuple=True)
    block = [padded[rows + down, columns + right] for down in (0, 1) for right in (0, 1)]
    return (rows, columns), torch.stack(block)


def _mixed(ids: Tensor) -> Tensor:
    """Mark blocks of 2 x 2 pixels that hold several ids, (H - 1, W - 1) bool, at their upper left pixel."""
    first = ids[:-1, :-1]
    return (first != ids[:-1, 1:]) | (first != ids[1:, :-1]) | (first != ids[1:, 1:])


def _near_outline(ids: Tensor, distance: int) -> Tensor:
    """Mark pixels within ``distance`` of another class or of the image's border, (H, W) bool.

    A square around a pixel holds one class if all its 2 x 2 blocks do. An integral image counts those that do not.
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
