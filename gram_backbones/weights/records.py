"""Records of published weight files: origin, model and expected images.

The files of AOGNet's authors are for research only. They are listed here with their licence, but
not hosted. Get them from the authors and give their path.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from torchvision import models
from torchvision.models import WeightsEnum

from ..preprocessing import Preprocessing
from ..registry import find_variant
from .files import WeightError


@dataclass(frozen=True)
class WeightRecord:
    """A published weight file.

    Attributes:
        name: ``<model>.<tag>``; the tags are timm's where it has the same file.
        model: which of our models it fits.
        url: ``https://`` address with the file's hash; None if there is none.
        sha256: the hash, or its first digits.
        preprocessing: of the images that the network was trained on.
        top1: published ImageNet top-1 of the file's network, in percent.
        origin: who trained it.
        licence: licence of the file.

    Examples:
        >>> record = WEIGHTS["dgnet_r50.tv_in1k"]
        >>> record.model, record.top1, record.origin
        ('dgnet_r50', 76.13, 'torchvision')
    """

    name: str
    model: str
    url: str | None
    sha256: str | None
    preprocessing: Preprocessing
    top1: float
    origin: str
    licence: str


_TORCHVISION: dict[str, type[WeightsEnum]] = {
    "dgnet_r18": models.ResNet18_Weights,
    "dgnet_r34": models.ResNet34_Weights,
    "dgnet_r50": models.ResNet50_Weights,
    "dgnet_r101": models.ResNet101_Weights,
    "dgnet_x50": models.ResNeXt50_32X4D_Weights,
    "dgnet_mobilenet_v2": models.MobileNet_V2_Weights,
    "dgnet_regnetx_1600m": models.RegNet_X_1_6GF_Weights,
}
_TAGS = {"IMAGENET1K_V1": "tv_in1k", "IMAGENET1K_V2": "tv2_in1k"}
# The authors' files by tag; the second ones had 200 epochs with mixup and label smoothing.
_AUTHORS_TOP1 = {
    "authors": {"aognet_12m_released": 77.78, "aognet_40m_released": 80.16},
    "authors_mixup": {"aognet_12m_released": 78.37, "aognet_40m_released": 81.30},
}


def _torchvision_record(model: str, weights: WeightsEnum) -> WeightRecord:
    return WeightRecord(
        name=f"{model}.{_TAGS[weights.name]}",
        model=model,
        url=weights.url,
        sha256=weights.url.rsplit("-", 1)[1].split(".")[0],
        preprocessing=find_variant(model).preprocessing,
        top1=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        origin="torchvision",
        licence="BSD-3-Clause; see torchvision on the terms of ImageNet",
    )


def _records() -> dict[str, WeightRecord]:
    records = [
        WeightRecord(
            name=f"{model}.{tag}",
            model=model,
            url=None,
            sha256=None,
            preprocessing=find_variant(model).preprocessing,
            top1=top1,
            origin="the authors of AOGNet (CVPR 2019)",
            licence="research only",
        )
        for tag, rows in _AUTHORS_TOP1.items()
        for model, top1 in rows.items()
    ]
    records += [
        _torchvision_record(model, weights)
        for model, kind in _TORCHVISION.items()
        for weights in kind
    ]
    return {record.name: record for record in records}


WEIGHTS = _records()


def list_weights(pattern: str = "*") -> list[str]:
    """Names of all weight records that match a shell pattern, sorted.

    Examples:
        >>> list_weights("dgnet_r50.*")
        ['dgnet_r50.tv2_in1k', 'dgnet_r50.tv_in1k']
    """
    return sorted(name for name in WEIGHTS if fnmatch(name, pattern))


def find_by_hash(digest: str) -> WeightRecord | None:
    """The record of the file with a SHA-256, if there is one."""
    fitting = (r for r in WEIGHTS.values() if r.sha256 and digest.startswith(r.sha256))
    return next(fitting, None)


def weight_source(model: str, weights: str) -> str:
    """The address of a record, given by its name or tag; a path or address is returned as it is.

    Raises:
        WeightError: the record is of another model, or its file is not published at an address.

    Examples:
        >>> weight_source("dgnet_r50", "tv_in1k")
        'https://download.pytorch.org/models/resnet50-0676ba61.pth'
        >>> weight_source("dgnet_r50", "my_weights.pth")
        'my_weights.pth'
    """
    record = WEIGHTS.get(weights) or WEIGHTS.get(f"{model}.{weights}")
    if record is None:
        return weights
    if record.model != model:
        raise WeightError(f"{record.name} is for {record.model}, not for {model}")
    if record.url is None:
        raise WeightError(
            f"{record.name} is not hosted (licence: {record.licence}); get the file from "
            f"{record.origin} and give its path"
        )
    return record.url
