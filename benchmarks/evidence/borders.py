"""Cost of black borders and of sizes that are no whole strides, in the last pixels of images.

    python benchmarks/evidence/borders.py camvid:ROOT --count 12

Prints the tables of docs/method.md: the share of right pixels in the last 12 rows and columns, and the number of class
changes along the last row and column, which a comb of false classes raises.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ddsm_zoo import Predictor
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.layers import resize

MODEL = "uper_ddsm_lite0_camvid"
EDGE = 12  # rows and columns that are scored
FACTOR = 1.5  # to more pixels than the 640 x 480 to which the model enlarges images

Pixels = npt.NDArray[np.uint8]
Label = Callable[[Pixels], Pixels]


def examples(spec: str, count: int) -> Iterator[tuple[Pixels, npt.NDArray[np.int64]]]:
    """Iterate over images (H, W, 3) of val with their masks (H, W), evenly spread."""
    dataset = open_dataset(spec, "val")
    for index in range(0, len(dataset), max(1, len(dataset) // count)):
        image, mask = dataset.load(index)
        yield image.permute(1, 2, 0).numpy(), mask.numpy()


def stretched(predictor: Predictor) -> Label:
    """Label images that are stretched to whole strides, instead of extended to them."""
    multiple = predictor.model.backbone.multiple

    def label(image: Pixels) -> Pixels:
        height, width = (-(-side // multiple) * multiple for side in image.shape[:2])
        scores: Tensor = predictor.predict(resize(predictor.transform(image)[None], (height, width)))
        return resize(scores, image.shape[:2])[0].argmax(0).to(torch.uint8).numpy()

    return label


def score(mask: Pixels, truth: npt.NDArray[np.int64], classes: int) -> tuple[float, int]:
    """Return the share of right pixels near the last row and column, and the class changes along these."""
    edge = np.zeros(truth.shape, bool)
    edge[-EDGE:], edge[:, -EDGE:] = True, True
    edge &= truth < classes
    changes = sum(int((np.diff(line.astype(int)) != 0).sum()) for line in (mask[-1], mask[:, -1]))
    return float((mask == truth)[edge].mean()), changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="camvid:ROOT")
    parser.add_argument("--count", type=int, default=12, help="images")
    options = parser.parse_args()
    predictor = Predictor(MODEL)
    stretch, classes = stretched(predictor), len(predictor.labels)
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for image, truth in examples(options.data, options.count):
        found["as it is"].append(score(predictor(image).mask, truth, classes))
        for width in (2, 8):
            inside, inner = image.copy(), truth[:-width, :-width]
            inside[-width:], inside[:, -width:] = 0, 0
            outside = np.pad(image, ((0, width), (0, width), (0, 0)))
            name = f"{width} rows and columns of black"
            found[f"{name} inside"].append(score(predictor(inside).mask[:-width, :-width], inner, classes))
            found[f"{name} added"].append(score(predictor(outside).mask[:-width, :-width], truth, classes))
            part = image[:-width, :-width]
            found[f"{name} inside, trimmed"].append(score(predictor(part).mask, inner, classes))
        picture, ids = Image.fromarray(image), Image.fromarray(truth.astype(np.uint8))
        size = (round(image.shape[1] * FACTOR), round(image.shape[0] * FACTOR))
        height, width = (side // 32 * 32 for side in (size[1], size[0]))
        large = np.array(picture.resize(size, Image.Resampling.BICUBIC))[:height, :width]
        large_ids = np.array(ids.resize(size, Image.Resampling.NEAREST)).astype(np.int64)[:height, :width]
        whole = predictor(large).mask
        for cut in (1, 15, 31):
            part, inner = np.ascontiguousarray(large[:-cut, :-cut]), large_ids[:-cut, :-cut]
            found[f"large, the pixels before the last {cut}"].append(score(whole[:-cut, :-cut], inner, classes))
            found[f"large, without the last {cut}, extended"].append(score(predictor(part).mask, inner, classes))
            found[f"large, without the last {cut}, stretched"].append(score(stretch(part), inner, classes))
    for name, scores in found.items():
        accuracy, changes = np.mean(scores, axis=0)
        print(f"{name:48} {100 * accuracy:.2f} % right, {changes:.1f} class changes ({len(scores)} images)")


if __name__ == "__main__":
    main()
