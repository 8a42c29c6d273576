"""Print versions and devices, as the frameworks that are installed collect them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib import import_module

from .. import __version__
from ..upstream_warnings import silence_known_warnings

# Collectors of versions and devices, in the order of preference.
_COLLECTORS = (
    ("detectron2.utils.collect_env", "collect_env_info"),
    ("mmengine.utils.dl_utils", "collect_env"),
    ("torch.utils.collect_env", "get_pretty_env_info"),
)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print what the collectors say."""
    argparse.ArgumentParser(prog=prog, description=__doc__).parse_args(argv)
    silence_known_warnings()
    print("\n".join(environment()))


def environment() -> Iterator[str]:
    """Versions and devices, a text for each collector."""
    yield f"gram_backbones {__version__}"
    for module, function in _COLLECTORS:
        try:
            found = getattr(import_module(module), function)()
        except ImportError:
            continue
        if isinstance(found, dict):
            found = "\n".join(f"{key}: {value}" for key, value in found.items())
        yield f"\n{module}\n{found}"
