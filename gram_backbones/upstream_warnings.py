"""Warnings of libraries about each other that come at every start and ask nothing of the user."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

# What is not shown, by the beginning of its text.
_WARNINGS = {
    # torchvision and Detectron2 script functions when they are imported; only they can change it.
    "`torch.jit.script` is deprecated": FutureWarning,
    # Callers in Detectron2 and MMDetection leave `indexing` out, whose default is what they mean.
    "torch.meshgrid: in an upcoming release": UserWarning,
    # MMDetection names an optional package when it is imported; no config of ours uses it.
    "faster_coco_eval is not installed": UserWarning,
    # MMEngine's drawing, of boxes and masks that reach beyond the image by a rounding.
    "Warning: The bbox is out of bounds": UserWarning,
    "Warning: The polygon is out of bounds": UserWarning,
    # torch, of more loader workers than cores; configs written for larger machines ask for them.
    "This DataLoader will create": UserWarning,
}
# MMDetection prints this at its import, of an optional package for data that none of ours is.
_PRINTED = ("Could not import OneDL",)
_LOGGED = (
    # Of torch, where CUDA's compiler is installed but there is no GPU: nothing is compiled.
    "No CUDA runtime is found",
    # Of torch, to Detectron2's poolers, for which both meanings of the function are right.
    "is_fx_tracing will return true",
    # Of MMEngine about its own loading of images, as configs of MMDetection 3 ask for it.
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    # Of Detectron2 about data whose category ids have gaps, which it handles.
    "Category ids in annotations are not in",
)
# Those of libraries; MMEngine's exists only once a runner has made it.
_LOGGERS = (
    "torch.utils.cpp_extension",
    "torch.fx._symbolic_trace",
    "detectron2.data.datasets.coco",
)


def silence_known_warnings() -> None:
    """Hide the warnings that this module lists, and no others.

    Examples:
        >>> with warnings.catch_warnings(record=True) as seen:
        ...     silence_known_warnings()
        ...     warnings.warn("faster_coco_eval is not installed, metrics will not be computed.")
        ...     warnings.warn("the learning rate is 0")
        >>> [str(warning.message) for warning in seen]
        ['the learning rate is 0']
    """
    for text, category in _WARNINGS.items():
        warnings.filterwarnings("ignore", text.replace(".", r"\."), category)
    for name in _LOGGERS:
        silence_logger(logging.getLogger(name))


def silence_started_processes() -> None:
    """Hide the listed warnings in processes that are started from now on.

    They import frameworks before any of our code runs, so the environment must say it.

    Examples:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, PYTHONWARNINGS=""):
        ...     silence_started_processes()
        ...     os.environ["PYTHONWARNINGS"].split(",")[1]
        'ignore:`torch.jit.script` is deprecated:FutureWarning'
    """
    # The variable cannot hold texts with its own separators; these come later than the imports.
    plain = {text: kind for text, kind in _WARNINGS.items() if not {":", ","} & {*text}}
    listed = [f"ignore:{text}:{category.__name__}" for text, category in plain.items()]
    os.environ["PYTHONWARNINGS"] = ",".join([os.environ.get("PYTHONWARNINGS", ""), *listed])


@contextmanager
def silence_printed_lines() -> Iterator[None]:
    """Hide the listed lines that are printed inside; others follow at the end.

    Examples:
        >>> with silence_printed_lines():
        ...     print("Could not import OneDL. Skipping OneDL datasets.")
        ...     print("loaded")
        loaded
    """
    with redirect_stdout(io.StringIO()) as printed:
        yield
    for line in printed.getvalue().splitlines():
        if not line.startswith(_PRINTED):
            print(line)


def silence_logger(logger: logging.Logger) -> None:
    """Hide the listed messages of one logger.

    Examples:
        >>> silence_logger(logging.getLogger("mmengine"))
    """
    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().lstrip().startswith(_LOGGED)
