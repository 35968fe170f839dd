"""Entry points for torch.hub: one for each model of the zoo, ``torch.hub.load(REPOSITORY, NAME, pretrained=True)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ddsm_zoo

# torch.hub takes every callable here for a model
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

dependencies = ["huggingface_hub", "safetensors", "timm", "torch", "torchvision"]


def _entry_point(name: str) -> Callable[..., Any]:
    config = ddsm_zoo.model_config(name)

    def create(pretrained: bool = False, **options: Any) -> Any:
        return ddsm_zoo.create_model(name, pretrained, **options)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = (
        f"Decoder {config.decoder}, fusion {config.fusion}, backbone {config.backbone}, "
        f"{config.num_classes} classes: (N, {config.in_chans}, H, W) -> logits (N, {config.num_classes}, H, W).\n\n"
        "``pretrained=True`` loads the task weights, or the backbone's ImageNet weights for a name without a data set; "
        "the other options are those of ``ddsm_zoo.create_model``, such as ``num_classes=7``."
    )
    return create


globals().update({name: _entry_point(name) for name in ddsm_zoo.list_models()})
