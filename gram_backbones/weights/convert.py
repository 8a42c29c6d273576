"""Convert weight files to another naming and layout, with a record of their origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..registry import build_model, find_variant, list_models
from ..staged import StagedBackbone
from .files import (
    WeightError,
    WeightFile,
    file_hash,
    read_weight_file,
    write_weight_file,
)
from .fit import fit
from .names import C4_HEADS, find_names, name_in_head
from .published import fetch_weights
from .records import find_by_hash


class _Layout(NamedTuple):
    prefix: str  # of the backbone's names
    head: str | None  # prefix of a C4 head's last stage
    key: str  # of the tensors in a .pth file


_LAYOUTS = {
    "backbone": _Layout("", None, "state_dict"),
    "d2-fpn": _Layout("backbone.bottom_up.", None, "model"),
    "d2-c4": _Layout("backbone.", C4_HEADS["d2"], "model"),
    "mmdet": _Layout("backbone.", None, "state_dict"),
    "mmdet-c4": _Layout("backbone.", C4_HEADS["mmdet"], "state_dict"),
}
LAYOUTS = tuple(_LAYOUTS)
NAMINGS = tuple(dict.fromkeys(n for m in list_models() for n in find_variant(m).namings))


def convert_weights(
    source: str,
    target: str | Path,
    model: str,
    *,
    names: str = "own",
    layout: str = "backbone",
    licence: str | None = None,
    allow_pickle: bool = False,
    accept_license: str | None = None,
) -> dict[str, str]:
    """Read a weight file of any known kind and write it in another naming, layout or format.

    Args:
        source: name or tag of ``list_weights()``, path, or ``https://`` address.
        target: ``.safetensors``, ``.pth``, ``.pt``, or Detectron2's ``.pkl``.
        model: one of ``list_models()``.
        names: one of ``NAMINGS``; the layouts of detectors take only ``"own"``.
        layout: one of ``LAYOUTS``: a bare backbone, or a detector of Detectron2 or MMDetection with
            FPN or C4, as the frameworks' own loaders read it.
        licence: of the weights. Default: the licence in the source's record, or in ``WEIGHTS``.
        allow_pickle: let a pickle run arbitrary code; for trusted files only.
        accept_license: see :func:`gram_backbones.load_weights`.

    Returns:
        The record that was written with the tensors.

    Raises:
        FileNotFoundError: there is no such file.
        WeightError: the source cannot be read or does not fit the model, or names and layout
            cannot be combined.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from gram_backbones import AOGNet
        >>> with TemporaryDirectory() as folder:
        ...     source, target = f"{folder}/own.pth", f"{folder}/authors.safetensors"
        ...     torch.save(AOGNet("aognet_4m", num_classes=10).state_dict(), source)
        ...     record = convert_weights(source, target, "aognet_4m", names="authors")
        ...     names = list(read_weight_file(target).tensors)
        >>> record["names"], record["source"]
        ('authors', 'own.pth')
        >>> "stem.0.conv_norm.conv_norm.0.weight" in names
        True
    """
    if not Path(target).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {Path(target).absolute().parent}")
    path = fetch_weights(source, find_variant(model), accept_license=accept_license)
    file = read_weight_file(path, allow_pickle=allow_pickle)
    network = _network_for(model, file)
    values = fit(network.state_dict(), network.variant, file).values
    tensors = _arranged(network, values, model, names, layout)
    record = {
        "model": model,
        "names": names,
        "layout": layout,
        **_origin(network, file, path, licence),
    }
    write_weight_file(target, tensors, record, _LAYOUTS[layout].key)
    return record


def _network_for(model: str, file: WeightFile) -> StagedBackbone:
    """The model with the file's number of classes, or without a classifier if it has none."""
    variant = find_variant(model)
    mine = {ours: name for name, ours in find_names(variant, file.tensors)[2].items()}
    weight = mine.get(f"{variant.classifier}.weight")
    if weight is None:
        return build_model(model, features_only=True)
    return build_model(model, num_classes=len(file.tensors[weight]))


def _arranged(
    network: StagedBackbone, values: Mapping[str, Tensor], model: str, names: str, layout: str
) -> dict[str, Tensor]:
    """The tensors under the names of a naming and layout.

    Raises:
        WeightError: unknown names or layout, or they cannot be combined for this model.
    """
    allowed = network.variant.namings
    if names not in allowed:
        raise WeightError(f"names is {names!r}; {model} can be written as {tuple(allowed)}")
    if layout not in _LAYOUTS:
        raise WeightError(f"layout is {layout!r}; allowed are {LAYOUTS}")
    if layout == "backbone":
        return {allowed[names](name): value for name, value in values.items()}
    if names != "own":
        raise WeightError(f"layout {layout!r} takes names 'own', not {names!r}")
    prefix, head, _ = _LAYOUTS[layout]
    if head is not None and "res5" not in network.stage_names:
        raise WeightError(f"layout {layout!r} needs the stage res5, which {model} does not have")
    return _placed(network, values, prefix, head)


def _origin(
    network: StagedBackbone, file: WeightFile, source: Path, licence: str | None
) -> dict[str, str]:
    """What a record says of the source: its hash, its images, its licence, its top-1 if known."""
    images, digest = network.variant.preprocessing, file_hash(source)
    known = find_by_hash(digest)
    published = {"licence": known.licence, "top1": str(known.top1)} if known else {}
    said = {**published, **file.record}
    if licence is None:
        licence = said.get("licence", "unknown: ask the author of the source")
    origin = {
        "source": source.name,
        "source_sha256": digest,
        "mean": said.get("mean", str(images.mean)),
        "std": said.get("std", str(images.std)),
        "channel_order": said.get("channel_order", images.channel_order),
        "licence": licence,
    }
    return {**origin, "top1": said["top1"]} if "top1" in said else origin


def _placed(
    network: StagedBackbone, values: Mapping[str, Tensor], prefix: str, head: str | None
) -> dict[str, Tensor]:
    """The tensors under their names in a detector, without the classifier."""
    last = [] if head is None else network.feature_modules("res5")
    parts = {
        f"{name}."
        for name, module in network.named_modules()
        if any(module is part for part in last)
    }
    variant = network.variant
    behind = tuple(f"{path}." for path in (*variant.before_pooling, variant.head))
    tensors = {}
    for name, value in values.items():
        if name.startswith(behind):
            continue
        if head is not None and name.startswith(tuple(parts)):
            tensors[name_in_head(variant, head, name)] = value
        else:
            tensors[prefix + name] = value
    return tensors
