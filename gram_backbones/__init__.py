"""AOGNet and DG-Net backbones for Detectron2, MMDetection and detectors of one's own.

The names below are imported when first used, so that the grammar and the command line work without
loading torch, and the networks without any detection framework.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "AOGNet": "aognet",
    "AOGNetVariant": "aognet",
    "DGNet": "dgnet",
    "DGNetVariant": "dgnet",
    "record_connectivity": "dgnet",
    "build_graph": "grammar",
    "create_model": "factory",
    "list_models": "registry",
    "list_weights": "weights",
    "load_weights": "weights",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted(__all__)
