"""Segmentation models: a timm backbone, a decoder and a classifier."""

from ddsm_zoo.models.backbone import (
    BackboneError,
    has_stride_2,
    hub_uri,
    imagenet_preprocess,
    packaged_weights,
)
from ddsm_zoo.models.complexity import Complexity, complexity, count
from ddsm_zoo.models.decoders import register_decoder
from ddsm_zoo.models.given import as_segmenter, require_rgb, unwrap
from ddsm_zoo.models.segmenter import Segmenter

__all__ = [
    "BackboneError",
    "Complexity",
    "Segmenter",
    "as_segmenter",
    "complexity",
    "count",
    "has_stride_2",
    "hub_uri",
    "imagenet_preprocess",
    "packaged_weights",
    "register_decoder",
    "require_rgb",
    "unwrap",
]
