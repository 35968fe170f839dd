"""Models with random weights of which no single class wins everywhere."""

from __future__ import annotations

import dataclasses

import torch

import ddsm_zoo
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.models import Segmenter


def competing_model(seed: int) -> Segmenter:
    """Random weights of which no single class wins everywhere."""
    torch.manual_seed(seed)
    model = ddsm_zoo.create_model("uper_tiny", num_classes=len(CAMVID))
    with torch.no_grad():
        model.classifier.weight *= 30
    model.provenance = dataclasses.replace(model.provenance, labels=CAMVID)
    return model.eval()
