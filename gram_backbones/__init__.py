"""AOGNet and DG-Net backbones for Detectron2, MMDetection and detectors of one's own.

The names in ``__init__.pyi`` are imported when first used, so that the grammar and the command line
work without loading torch, and the networks without any detection framework.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  # no installer looks at a checkout on the path
    raise ImportError(
        "gram_backbones needs Python 3.10 or newer; this is Python {}.{}".format(*sys.version_info)
    )

import lazy_loader

from .versions import check_torch

__version__ = "0.1.0"

check_torch()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
