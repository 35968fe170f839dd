"""Models whose samplers do not sample the plain grid, as freshly built ones do."""

from __future__ import annotations

import torch

import ddsm_zoo
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.layers import SpatialAffinity
from ddsm_zoo.models import Segmenter


def unsettled(name: str, **options: object) -> Segmenter:
    """A model whose sampler has left the plain grid."""
    torch.manual_seed(0)
    model = ddsm_zoo.create_model(name, num_classes=len(CAMVID), **options)
    for module in model.modules():
        if isinstance(module, SpatialAffinity):
            torch.nn.init.normal_(module.sampler.predict.weight, std=0.5)
            torch.nn.init.normal_(module.sampler.predict.bias, std=1.5)
    return model
