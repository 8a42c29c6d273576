"""Detectron2 adapter: ``import gram_backbones.d2`` registers the backbones and RoI heads."""

from ..versions import check_version

try:
    import detectron2
except ImportError as error:
    raise ImportError(
        "gram_backbones.d2 needs Detectron2, which is not installed: install it as its "
        "documentation describes, or run tools/setup.sh in a checkout of gram_backbones"
    ) from error
else:
    check_version("detectron2", detectron2.__version__)

from ..weights.files import WeightError
from .aognet import (
    AOGNetBackbone,
    build_aognet_backbone,
    build_aognet_fpn_backbone,
    build_retinanet_aognet_fpn_backbone,
)
from .checkpoint import GramCheckpointer
from .config import add_gram_backbones_config, get_config, get_config_file
from .datasets import register_demo_datasets
from .dgnet import (
    DGNetBackbone,
    build_dgnet_backbone,
    build_dgnet_fpn_backbone,
    build_retinanet_dgnet_fpn_backbone,
)
from .engine import GramPredictor, GramTrainer
from .meta_arch import GramGeneralizedRCNN
from .roi_heads import GramRes5ROIHeads

register_demo_datasets()

__all__ = [
    "AOGNetBackbone",
    "DGNetBackbone",
    "GramCheckpointer",
    "GramGeneralizedRCNN",
    "GramPredictor",
    "GramRes5ROIHeads",
    "GramTrainer",
    "WeightError",
    "add_gram_backbones_config",
    "build_aognet_backbone",
    "build_aognet_fpn_backbone",
    "build_dgnet_backbone",
    "build_dgnet_fpn_backbone",
    "build_retinanet_aognet_fpn_backbone",
    "build_retinanet_dgnet_fpn_backbone",
    "get_config",
    "get_config_file",
]
