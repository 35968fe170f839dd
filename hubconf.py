"""Entry points for torch.hub: one for each name that `create_model` takes.

``torch.hub.load(REPOSITORY, NAME, pretrained=True)``. `torch.hub.list` lists the models of the zoo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ddsm_zoo

# torch.hub takes every callable here for a model
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

dependencies = ["huggingface_hub", "safetensors", "timm", "torch", "torchvision"]


def _entry_point(name: str) -> Callable[..., Any]:
    def create(pretrained: bool = False, **options: Any) -> Any:
        return ddsm_zoo.create_model(name, pretrained, **options)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = (
        f"{_architecture(name)}: (N, C, H, W) -> logits (N, K, H, W).\n\n"
        "``pretrained=True`` loads the task weights, or the backbone's ImageNet weights for a name without a data set; "
        "the other options are those of ``ddsm_zoo.create_model``, such as ``num_classes=7``."
    )
    return create


def _architecture(name: str) -> str:
    if not ddsm_zoo.is_model(name):
        return f"The decoder and fusion {name} on the timm network that ``backbone`` names"
    config = ddsm_zoo.model_config(name)
    return f"Decoder {config.decoder}, fusion {config.fusion}, backbone {config.backbone}, {config.num_classes} classes"


def __getattr__(name: str) -> Any:
    """Make the entry point of a name that is not listed: with dots, of a family, or wrong, which the call explains."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _entry_point(name)


class _EveryName(str):
    """Entry of ``dir()`` that equals every name: torch.hub looks names up there, before it asks `__getattr__`.

    It sends spellings that are not listed to `create_model`, whose error says what was meant.
    """

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and not other.startswith("_")


def __dir__() -> list[str]:
    return [*globals(), _EveryName("_every_name")]


globals().update({name: _entry_point(name) for name in ddsm_zoo.list_models()})
