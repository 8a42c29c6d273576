# What the package exports: for type checkers, and for lazy_loader, which reads it at run time.
from .aognet import AOGNet, AOGNetVariant
from .dgnet import DGNet, DGNetVariant, record_connectivity
from .factory import create_model
from .grammar import build_graph
from .registry import feature_info, list_models
from .weights import list_weights, load_weights

__all__ = [
    "AOGNet",
    "AOGNetVariant",
    "DGNet",
    "DGNetVariant",
    "build_graph",
    "create_model",
    "feature_info",
    "list_models",
    "list_weights",
    "load_weights",
    "record_connectivity",
]
__version__: str
