"""Inference protocols as frozen data, by name or from a TOML file."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddsm_zoo.errors import MissingFileError, facts
from ddsm_zoo.inference.modes import Predict, multi_scale, sliding_window
from ddsm_zoo.layers import resize
from ddsm_zoo.utils.plain_data import ConfigError, from_dict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class InferenceProtocol:
    """One way to run a model over an image. The default runs it on the whole image as it is.

    Attributes:
        size: Size (H, W) that images are resized to first. Scores are still compared at the label's own resolution.
        crop: Size (H, W) of the sliding window, at every scale.
        stride: Stride (H, W) of the sliding window, at every scale.
        scales: Resize factors relative to ``size`` or, without it, to the image.
        flip: Add the mirror image at each scale.

    Raises:
        ConfigError: A value is out of range, or only one of ``crop`` and ``stride`` is given.
    """

    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ConfigError.of("size", self.size, "a height and a width of at least 1")
        if (self.crop is None) != (self.stride is None):
            raise ConfigError(
                f"crop is {self.crop} and stride {self.stride}, expected both or neither",
                kind="options",
                name="stride",
                got=self.stride,
            )
        try:
            self.apply(lambda image: image)  # an invalid combination fails before a model is loaded
        except ValueError as error:
            raise ConfigError(str(error), **facts(error)) from error

    def apply(self, predict: Predict) -> Predict:
        """Wrap ``predict`` to run by this protocol.

        Args:
            predict: Function from normalized images (N, 3, H, W) to logits (N, K, H, W).

        Returns:
            A function that gives logits, or probabilities with several scales or a flip.
        """
        if self.crop is not None and self.stride is not None:
            predict = sliding_window(predict, self.crop, self.stride)
        if self.scales != (1.0,) or self.flip:
            predict = multi_scale(predict, self.scales, self.flip)
        return predict if self.size is None else _resized(predict, self.size)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> InferenceProtocol:
        """Load a protocol by its name in PROTOCOLS or from a TOML file.

        Args:
            name_or_path: Name such as ``sliding``, or path of a TOML file.

        Raises:
            FileNotFoundError: There is no protocol of this name and no such file.
            ConfigError: The file is not a protocol.
        """
        if name_or_path in PROTOCOLS:
            return PROTOCOLS[str(name_or_path)]
        path = Path(name_or_path)
        if not path.is_file():
            raise MissingFileError(
                f"no protocol {str(name_or_path)!r}, expected {', '.join(PROTOCOLS)} or the path of a TOML file",
                name=str(name_or_path),
            )
        try:
            data = tomllib.loads(path.read_bytes().decode("utf-8"))
        except ValueError as error:  # not TOML, or not even UTF-8
            raise ConfigError(f"{path} is not valid TOML: {error}", kind="syntax", path=path) from error
        return from_dict(cls, data, where=str(path))


# CCNet's protocol, which the paper follows
_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
# The crop of the paper's training on Cityscapes; two thirds of it is the usual stride
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
