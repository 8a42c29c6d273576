"""Weight files that fill a module, or leave it untouched and say what is missing."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without the wrapper that frameworks put around them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds anything but tensors, numbers and containers.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is empty"
        raise ValueError(f"{path} is not read as weights: {reason}") from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    tensors = {}
    if isinstance(content, dict):
        tensors = {
            str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)
        }
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name")
    return tensors


def without_prefix(
    state: Mapping[str, Tensor], own: Iterable[str], prefixes: Iterable[str]
) -> dict[str, Tensor]:
    """The part of ``state`` under the first prefix that gives any of the names in ``own``.

    Nothing fits: ``state`` as it is, so that the names that are missed are the module's own.
    """
    own = set(own)
    for prefix in prefixes:
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if own & part.keys():
            return part
    return dict(state)


def check_filled(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str = "the weight file"
) -> list[str]:
    """Names of the tensors in ``own`` that ``state`` has to fill, all of which it does.

    Not owed are counters of BN, and the routers of a DG-Net where the file is its base network's.

    Raises:
        ValueError: tensors are missing or have another shape; the message lists the names.
    """
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    if not any("graphs." in name for name in state):
        # A DG-Net from its base network's weights: routers keep the start they were built with.
        wanted = [name for name in wanted if "graphs." not in name]
    missing = [name for name in wanted if name not in state]
    wrong = [
        f"{name} of shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in wanted
        if name in state and tuple(state[name].shape) != tuple(own[name].shape)
    ]
    if bad := missing + wrong:
        raise ValueError(
            f"{source} fills {len(wanted) - len(bad)} of {len(wanted)} backbone tensors; "
            f"missing: {_shorten(missing)}; of another shape: {_shorten(wrong)}"
        )
    return wanted


def fill(
    module: nn.Module, path: str | Path, prefixes: Iterable[str] = ("",)
) -> tuple[int, list[str]]:
    """Fill a backbone, or a stage of one, from a file.

    Args:
        module: gets the weights.
        path: file that :func:`read_weights` reads.
        prefixes: what may stand before the module's names in the file, in this order.

    Returns:
        The number of tensors loaded, and the names that the module keeps as they were.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weights` and :func:`check_filled`; the module
            is left as it was.
    """
    own = module.state_dict()
    state = without_prefix(read_weights(path), own, prefixes)
    wanted = check_filled(own, state, str(path))
    module.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
    return len(wanted), [name for name in own if name not in state]


def _shorten(names: list[str], most: int = 8) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
