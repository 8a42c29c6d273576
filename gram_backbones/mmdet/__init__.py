"""MMDetection adapter: importing it registers ``AOGNet``, ``DGNet``, ``AOGStage`` and ``DGStage``.

In a config::

    custom_imports = dict(imports=['gram_backbones.mmdet'], allow_failed_imports=False)
"""

from ..versions import check_version

try:
    import mmdet  # the library: imports are absolute
except ImportError as error:
    raise ImportError(
        "gram_backbones.mmdet needs MMDetection 3, which is not installed: install "
        "onedl-mmdetection or mmdet as their documentation describes, or run tools/setup.sh in a "
        "checkout of gram_backbones"
    ) from error
else:
    check_version("mmdet", mmdet.__version__)

from .aognet import AOGNetBackbone, AOGNetStage
from .channels import fill_channels
from .detectors import GramATSS, GramFasterRCNN, GramMaskRCNN, ValidSizesMixin
from .dgnet import DGNetBackbone, DGNetStage
from .pictures import PicturesHook
from .runs import GramRunner

__all__ = [
    "AOGNetBackbone",
    "AOGNetStage",
    "DGNetBackbone",
    "DGNetStage",
    "GramATSS",
    "GramFasterRCNN",
    "GramMaskRCNN",
    "GramRunner",
    "PicturesHook",
    "ValidSizesMixin",
    "fill_channels",
]
