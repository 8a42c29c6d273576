"""AOGNet and DG-Net backbones for Detectron2, MMDetection and detectors of one's own.

The names in ``__init__.pyi`` are imported when first used, so that the grammar and the command line
work without loading torch, and the networks without any detection framework.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
