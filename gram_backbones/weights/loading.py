"""Filling networks from weight files: every tensor, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..fused import is_deployed
from .files import WeightError, WeightFile
from .fit import Fit, fit, is_counter, network_tensors
from .published import read_weights

logger = logging.getLogger(__name__)


def load_weights(
    module: nn.Module,
    source: str | Path | WeightFile | Mapping[str, Tensor],
    prefix: str = "",
    *,
    accept_license: str | None = None,
) -> Fit:
    """Fill a network, or a C4 detector's stage, from a file or from a state dict.

    Tensors may have the names of this project or either naming of the AOGNet authors; for DG-Net,
    also the names of its base network in torchvision, timm or Detectron2. The file may hold the
    network alone, or a Detectron2 or MMDetection detector that contains it.

    Args:
        module: network to fill: an ``AOGNet``, ``DGNet``, ``AOGStage`` or ``DGStage``.
        source: name or tag of :func:`gram_backbones.list_weights`, path, ``https://`` address with
            a hash, a file that was read, or a state dict.
        prefix: take only tensors whose names begin with this prefix, and strip it.
        accept_license: name of the licence that the user accepts, for published files that ask for
            it before they are downloaded. Default: ``GRAM_BACKBONES_ACCEPT_LICENSE`` in the
            environment.

    Returns:
        What was loaded, kept and ignored.

    Raises:
        FileNotFoundError: there is no such file.
        WeightError: see :func:`gram_backbones.weights.published.fetch_weights`,
            :func:`gram_backbones.weights.files.read_weight_file` and
            :func:`gram_backbones.weights.fit.fit`; the module is left as it was.

    Examples:
        >>> from torchvision.models import resnet18
        >>> from gram_backbones import DGNet
        >>> fit = load_weights(DGNet("dgnet_r18"), resnet18().state_dict())
        >>> len(fit.values) == fit.wanted
        True
        >>> fit.ignored
        ('fc.weight', 'fc.bias')
    """
    variant, names = network_tensors(module)
    if isinstance(source, Mapping):
        file = WeightFile("the given state dict", source)
    elif isinstance(source, WeightFile):
        file = source
    else:
        file = read_weights(source, variant, accept_license=accept_license)
    if prefix:
        part = {n.removeprefix(prefix): v for n, v in file.tensors.items() if n.startswith(prefix)}
        file = WeightFile(f"{file.source} ({prefix}*)", part, file.record)
    if is_deployed(module):
        raise ValueError("a deployed network takes no weights; load them and deploy again")
    own = module.state_dict()
    found = fit({whole: own[name] for whole, name in names.items()}, variant, file)
    return _fill(module, names, found)


def _fill(module: nn.Module, names: Mapping[str, str], found: Fit) -> Fit:
    module.load_state_dict({names[n]: v for n, v in found.values.items()}, strict=False)
    found = found.after_start(module)
    for level, line in found.report():
        logger.log(level, line)
    return found


def load_classifier_weights(model: nn.Module, source: str | Path) -> Fit:
    """Fill every tensor of a classifier from a file.

    Args:
        model: an ``AOGNet`` or ``DGNet`` with ``num_classes``.
        source: see :func:`load_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        WeightError: see :func:`load_weights`; or the file's classifier has another number of
            classes, or the file is of a DG-Net's base network. The model is left as it was.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from gram_backbones import AOGNet
        >>> model = AOGNet("aognet_4m", num_classes=10)
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(model.state_dict(), f"{folder}/aognet_4m.pth")
        ...     fit = load_classifier_weights(model, f"{folder}/aognet_4m.pth")
        >>> fit.kept, fit.ignored
        ((), ())
    """
    variant, names = network_tensors(model)
    file = read_weights(source, variant)
    own = model.state_dict()
    found = fit(own, variant, file)
    if len(found.values) < found.wanted:
        name = next(n for n in own if n not in found.values and not is_counter(n))
        theirs = len(next(file.tensors[n] for n in found.ignored))
        raise WeightError(
            f"the classifier in {source} has {theirs} classes, but the images have {len(own[name])}"
        )
    if found.kept:
        raise WeightError(
            f"{source} holds only the base network; a trained model is needed, which also has "
            f"{found.kept[0]}"
        )
    return _fill(model, names, found)
