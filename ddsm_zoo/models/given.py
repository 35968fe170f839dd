"""Models that callers give: the segmenter inside wrappers, and its demands on the input."""

from __future__ import annotations

from typing import cast

from torch import nn

from ddsm_zoo.errors import ArgumentError, ArgumentTypeError
from ddsm_zoo.models.segmenter import Segmenter


def unwrap(model: nn.Module) -> Segmenter:
    """Return the segmenter inside torch.compile, DataParallel, DistributedDataParallel or an average of weights.

    Raises TypeError for other models.
    """
    inner: object = model
    while not isinstance(inner, Segmenter):
        wrapped = inner
        inner = getattr(wrapped, "_orig_mod", None) or getattr(wrapped, "module", None)
        if not isinstance(inner, nn.Module):
            raise ArgumentTypeError(
                f"got a {type(model).__name__}, expected a model of this package; pass the Segmenter inside it, "
                "or save another model's state dict with safetensors.torch.save_file",
                name="model",
                got=type(model).__name__,
            )
    return inner


def as_segmenter(model: object) -> Segmenter | None:
    """Return the segmenter inside torch's and timm's wrappers, which compute the same. None if there is none.

    A compiled segmenter is returned as it is, since it has a segmenter's attributes. Other modules around a segmenter
    are not unwrapped, because they may compute something else.
    """
    inner = model
    while not isinstance(inner, Segmenter):
        if not isinstance(inner, nn.Module) or type(inner).__module__.partition(".")[0] not in ("torch", "timm"):
            return None
        compiled = inner._modules.get("_orig_mod")
        if isinstance(compiled, Segmenter):
            return cast(Segmenter, inner)
        inner = compiled or inner._modules.get("module")
    return inner


def require_rgb(model: Segmenter) -> None:
    """Raise ArgumentError for a model of other than three channels: images are read as RGB."""
    if model.config.in_chans != 3:
        raise ArgumentError(
            f"the model takes {model.config.in_chans} channels, expected 3: images are read as RGB",
            kind="channels",
            name="in_chans",
            got=model.config.in_chans,
            expected=3,
        )
