"""How a score comes about, as frozen data: a name or a TOML file that turns a model into the callable to be scored."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddsm_zoo.config import ConfigError, from_dict
from ddsm_zoo.inference.modes import Predict, multi_scale, sliding_window
from ddsm_zoo.layers import resize

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class InferenceProtocol:
    """One way to run a model over an image; without any field, on the whole image as it is.

    ``size`` (H, W) is what images are resized to first; scores are compared at the label's own resolution all the same.
    ``crop`` and ``stride`` (H, W) are the sliding window's, at every scale. ``scales`` are relative to ``size``, or
    to the image. ``flip`` adds the mirror image of each.
    """

    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"size is {self.size}, expected a height and a width of at least 1")
        if (self.crop is None) != (self.stride is None):
            raise ConfigError(f"crop is {self.crop} and stride {self.stride}, expected both or neither")
        try:
            self.apply(lambda image: image)  # what cannot be composed is known before a model is loaded
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def apply(self, predict: Predict) -> Predict:
        """``predict``, run in this way. The result gives logits, or probabilities for several scales or a flip."""
        if self.crop is not None and self.stride is not None:
            predict = sliding_window(predict, self.crop, self.stride)
        if self.scales != (1.0,) or self.flip:
            predict = multi_scale(predict, self.scales, self.flip)
        return predict if self.size is None else _resized(predict, self.size)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> InferenceProtocol:
        """The protocol of that name in PROTOCOLS, or the one in a TOML file.

        Raises FileNotFoundError for neither, and ConfigError for a file that is no protocol.
        """
        if name_or_path in PROTOCOLS:
            return PROTOCOLS[str(name_or_path)]
        path = Path(name_or_path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no protocol {str(name_or_path)!r}, expected {', '.join(PROTOCOLS)} or the path of a TOML file"
            )
        try:
            data = tomllib.loads(path.read_bytes().decode("utf-8"))
        except ValueError as error:  # not TOML, or not even UTF-8
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        return from_dict(cls, data, where=str(path))


# CCNet's, which the paper follows
_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
# The crop is that of the paper's training on Cityscapes, two thirds of it the usual stride
_CROP, _STRIDE = (1024, 1024), (683, 683)

PROTOCOLS = {
    "whole": InferenceProtocol(),
    "flip": InferenceProtocol(flip=True),
    "sliding": InferenceProtocol(crop=_CROP, stride=_STRIDE),
    "multi_scale": InferenceProtocol(scales=_SCALES, flip=True),
    "sliding_multi_scale": InferenceProtocol(crop=_CROP, stride=_STRIDE, scales=_SCALES, flip=True),
}


def _resized(predict: Predict, size: tuple[int, int]) -> Predict:
    def predict_resized(image: Tensor) -> Tensor:
        return predict(resize(image, size))

    return predict_resized
