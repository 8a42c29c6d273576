"""Weight files: reading, fitting them strictly to a network, records of published ones."""

from .files import WeightError, WeightFile, read_weight_file
from .fit import Fit
from .loading import load_classifier_weights, load_weights
from .published import read_weights
from .records import WeightRecord, list_weights

__all__ = [
    "Fit",
    "WeightError",
    "WeightFile",
    "WeightRecord",
    "list_weights",
    "load_classifier_weights",
    "load_weights",
    "read_weight_file",
    "read_weights",
]
