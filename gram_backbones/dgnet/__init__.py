"""DG-Net: stages that are complete graphs, with edges weighted for every image."""

from .graph import DynamicGraph, record_connectivity
from .network import DGNet, DGStage
from .variants import VARIANTS, DGNetVariant

__all__ = [
    "VARIANTS",
    "DGNet",
    "DGNetVariant",
    "DGStage",
    "DynamicGraph",
    "record_connectivity",
]
