"""Record what the bundled model answers to a fixed input, for tests/weights/test_bundled.py.

    python tools/golden.py

Run it once after new weights went into ddsm_zoo/weights/, never to make a failing test pass.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

import ddsm_zoo
from ddsm_zoo.utils.files import atomic_path

NAME = "uper_ddsm_lite0_camvid"
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / f"{NAME}.safetensors"


def main() -> None:
    """Write the image (1, 3, 48, 80) and its logits (1, 11, 48, 80)."""
    image = torch.randn(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    model = ddsm_zoo.create_model(NAME, pretrained=True).eval()
    with torch.inference_mode():
        logits = model(image)
    with atomic_path(GOLDEN) as temporary:
        temporary.write_bytes(safetensors.torch.save({"image": image, "logits": logits.contiguous()}))


if __name__ == "__main__":
    main()
