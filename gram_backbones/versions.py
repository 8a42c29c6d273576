"""The oldest versions that the package runs on. Older ones are named at import."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from os.path import dirname, isfile, join

# pyproject.toml asks installers for the same; docs/reliability.md says which were tried.
OLDEST = {"torch": "2.6", "timm": "1.0.15", "detectron2": "0.6", "mmdet": "3.3"}


def check_version(package: str, installed: str) -> None:
    """Refuse a package that is older than `OLDEST` allows.

    Args:
        package: a key of `OLDEST`.
        installed: its version; only the numbers at the beginning count.

    Raises:
        ImportError: it is older; the message has both versions.

    Examples:
        >>> check_version("torch", "2.14.1+cpu")
        >>> check_version("torch", "2.5.1")
        Traceback (most recent call last):
        ImportError: gram_backbones needs torch 2.6 or newer; installed is torch 2.5.1
    """
    if _numbers(installed) < _numbers(OLDEST[package]):
        raise ImportError(
            f"gram_backbones needs {package} {OLDEST[package]} or newer; "
            f"installed is {package} {installed}"
        )


def check_torch() -> None:
    """Refuse a torch that is too old, without importing it.

    Where there is none, nothing happens: the grammar does without.

    Raises:
        ImportError: it is older than `OLDEST` allows; the message has both versions.

    Examples:
        >>> check_torch()
    """
    if loaded := sys.modules.get("torch"):
        return check_version("torch", str(loaded.__version__))
    spec = find_spec("torch")
    if spec and spec.origin and isfile(found_in := join(dirname(spec.origin), "version.py")):
        # importlib.metadata would triple the time that `import gram_backbones` takes.
        with open(found_in) as file:
            if found := re.search(r"__version__ = ['\"](.+?)['\"]", file.read()):
                check_version("torch", found[1])


def _numbers(version: str) -> list[int]:
    begin = re.match(r"[\d.]*\d", version)
    return [int(number) for number in begin[0].split(".")] if begin else [sys.maxsize]
