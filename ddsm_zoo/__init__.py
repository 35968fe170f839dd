"""Semantic segmentation models with the Dynamic Dual Sampling Module, by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddsm_zoo.version import __version__

if TYPE_CHECKING:
    from ddsm_zoo.data.kinds import register_dataset
    from ddsm_zoo.data.transforms import create_transform
    from ddsm_zoo.evaluation.evaluate import evaluate
    from ddsm_zoo.inference.predictor import Predictor, Segmentation
    from ddsm_zoo.layers.fusion import register_fusion
    from ddsm_zoo.models.decoders import register_decoder
    from ddsm_zoo.models.segmenter import Segmenter
    from ddsm_zoo.training.run import train
    from ddsm_zoo.zoo.factory import create_model, from_pretrained, resolve_data_config
    from ddsm_zoo.zoo.publishing import push_to_hub, save_pretrained
    from ddsm_zoo.zoo.registry import (
        is_model,
        list_models,
        list_pretrained,
        model_config,
        register_backbone,
        register_model,
    )

__all__ = [
    "Predictor",
    "Segmentation",
    "Segmenter",
    "__version__",
    "create_model",
    "create_transform",
    "evaluate",
    "from_pretrained",
    "is_model",
    "list_models",
    "list_pretrained",
    "model_config",
    "push_to_hub",
    "register_backbone",
    "register_dataset",
    "register_decoder",
    "register_fusion",
    "register_model",
    "resolve_data_config",
    "save_pretrained",
    "train",
]

_MODULES = {
    "ddsm_zoo.data.kinds": ("register_dataset",),
    "ddsm_zoo.data.transforms": ("create_transform",),
    "ddsm_zoo.evaluation.evaluate": ("evaluate",),
    "ddsm_zoo.inference.predictor": ("Predictor", "Segmentation"),
    "ddsm_zoo.layers.fusion": ("register_fusion",),
    "ddsm_zoo.models.decoders": ("register_decoder",),
    "ddsm_zoo.models.segmenter": ("Segmenter",),
    "ddsm_zoo.training.run": ("train",),
    "ddsm_zoo.zoo.factory": ("create_model", "from_pretrained", "resolve_data_config"),
    "ddsm_zoo.zoo.publishing": ("push_to_hub", "save_pretrained"),
    "ddsm_zoo.zoo.registry": (
        "is_model",
        "list_models",
        "list_pretrained",
        "model_config",
        "register_backbone",
        "register_model",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    Importing torch takes seconds, and listing models does not need it.
    """
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
