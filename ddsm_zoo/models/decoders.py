"""Registry of decoders, including your own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.errors import ArgumentTypeError
from ddsm_zoo.models.deeplabv3plus import DeepLabV3Plus
from ddsm_zoo.models.upernet import UPerNet
from ddsm_zoo.utils.registry import DECODERS


class DecoderType(Protocol):
    """Module class that maps x2 .. x5, (N, C_s, H_s, W_s) each, to (N, config.width, H_2, W_2).

    It is built from the widths C_s and the model's config. ``output_stride`` is the deepest stride that it asks of the
    backbone: 32, or 16 for dilated features.
    """

    @property
    def output_stride(self) -> int: ...

    def __call__(self, channels: Sequence[int], config: ModelConfig) -> nn.Module: ...


def register_decoder(name: str, decoder: DecoderType) -> None:
    """Register ``decoder`` as a decoder for configs and model names, such as ``{name}_ddsm_r50``.

    Args:
        name: Lower-case letters, digits and underscores.
        decoder: Module class ``decoder(channels, config)`` with the attribute ``output_stride``, see `DecoderType`.

    Raises:
        ValueError: The name is taken or malformed.
        TypeError: ``decoder`` is not callable or has no ``output_stride``.
    """
    if not callable(decoder) or not hasattr(decoder, "output_stride"):
        raise ArgumentTypeError(
            f"got {decoder!r} for the decoder {name!r}, expected a class with the attribute output_stride",
            name=name,
            got=decoder,
        )
    DECODERS.register(name, decoder)


register_decoder("uper", UPerNet)
register_decoder("deeplabv3plus", DeepLabV3Plus)


def find_decoder(name: str) -> DecoderType:
    """Return the decoder of that name. Raises UnregisteredError."""
    found: DecoderType = DECODERS.find(name)
    return found
