"""Your own data sets: reading, converting and checking them, without torch or a framework."""

from .checking import Finding, Report, check_data, require_sound
from .classes import check_checkpoint_classes, check_number, check_same_classes
from .pictures import PictureError, PictureGuard, naming_picture, read_picture
from .reading import DataError, Dataset, in_id_order, read_coco, read_dataset, read_pair
from .statistics import Statistics, gather_statistics

__all__ = [
    "DataError",
    "Dataset",
    "Finding",
    "PictureError",
    "PictureGuard",
    "Report",
    "Statistics",
    "check_checkpoint_classes",
    "check_data",
    "check_number",
    "check_same_classes",
    "gather_statistics",
    "in_id_order",
    "naming_picture",
    "read_coco",
    "read_dataset",
    "read_pair",
    "read_picture",
    "require_sound",
]
