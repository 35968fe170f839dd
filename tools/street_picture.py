"""Draw the picture of the README: a rendered street beside its predicted classes, ``docs/assets/street.png``.

python tools/street_picture.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import ddsm_zoo
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.utils.files import atomic_path

TARGET = Path(__file__).resolve().parents[1] / "docs" / "assets" / "street.png"
SEED, SIZE = 21, (480, 640)


def main() -> None:
    """Predict the scene with the bundled model and write the picture."""
    image, _ = render_scene(SEED, SIZE)
    result = ddsm_zoo.Predictor("uper_ddsm_lite0_camvid")(image)
    predicted = np.asarray(result.overlay().convert("RGB"))
    height = predicted.shape[0]
    left = np.asarray(Image.fromarray(image).resize((SIZE[1] * height // SIZE[0], height)))
    with atomic_path(TARGET) as temporary:
        Image.fromarray(np.concatenate([left, predicted], axis=1)).quantize(256).save(temporary, optimize=True)


if __name__ == "__main__":
    main()
