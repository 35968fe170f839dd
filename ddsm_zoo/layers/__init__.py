"""Building blocks of the decoders."""

from ddsm_zoo.layers.affinity import ChannelAffinity, SpatialAffinity
from ddsm_zoo.layers.common import ConvNormAct, crop, resize
from ddsm_zoo.layers.context import ASPP, PPM
from ddsm_zoo.layers.ddsm import DDSM
from ddsm_zoo.layers.fusion import build_fusion, register_fusion
from ddsm_zoo.layers.sampler import DynamicSampler

__all__ = [
    "ASPP",
    "DDSM",
    "PPM",
    "ChannelAffinity",
    "ConvNormAct",
    "DynamicSampler",
    "SpatialAffinity",
    "build_fusion",
    "crop",
    "register_fusion",
    "resize",
]
