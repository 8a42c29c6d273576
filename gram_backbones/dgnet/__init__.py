"""DG-Net: stages that are complete graphs, with edges weighted for every image."""

from .graph import DynamicGraph, record_connectivity
from .network import VARIANTS, DGNet, DGNetVariant, DGStage, get_variant

__all__ = [
    "VARIANTS",
    "DGNet",
    "DGNetVariant",
    "DGStage",
    "DynamicGraph",
    "get_variant",
    "record_connectivity",
]
