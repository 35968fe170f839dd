"""Segmentation metrics, from counts that add up over images and processes."""

from ddsm_zoo.metrics.boundary import BoundaryFScore, BoundaryIoU
from ddsm_zoo.metrics.confusion import ConfusionMatrix
from ddsm_zoo.metrics.instances import InstanceIoU

__all__ = ["BoundaryFScore", "BoundaryIoU", "ConfusionMatrix", "InstanceIoU"]
