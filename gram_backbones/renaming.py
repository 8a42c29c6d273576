"""Namings of tensors as functions, so that names can be written as well as looked up."""

from __future__ import annotations

import re
from collections.abc import Callable

Rename = Callable[[str], str]


def substitute(*rules: tuple[str, str | Callable[[re.Match], str]]) -> Rename:
    """The first rule whose pattern begins the name rewrites it."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            new, count = pattern.subn(replacement, name, count=1)
            if count:
                return new
        return name

    return rename


def unchanged(name: str) -> str:
    """The naming that keeps our names; for DG-Net's base networks they are torchvision's."""
    return name
