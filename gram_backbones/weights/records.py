"""Records of published weight files: origin, model and expected images.

The files of AOGNet's authors are for research only. Nothing is hosted here: `.published` downloads
them from the authors' addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from torchvision import models
from torchvision.models import WeightsEnum

from ..preprocessing import Preprocessing
from ..registry import find_variant, list_models
from ..staged import Variant
from ..suggestions import did_you_mean
from .files import WeightError

RESEARCH_ONLY = "research only"


@dataclass(frozen=True)
class WeightRecord:
    """A published weight file.

    Attributes:
        name: ``<model>.<tag>``; the tags are timm's where it has the same file.
        model: which of our models it fits.
        url: ``https://`` address, with the file's hash unless the file is ``restricted``.
        sha256: the hash, or its first digits; None if it is not published.
        preprocessing: of the images that the network was trained on.
        top1: published ImageNet top-1 of the file's network, in percent; None if unknown.
        origin: who trained it.
        licence: licence of the file.
        size: of the published file in MB of 2²⁰ bytes; of its tensors where that is not published.

    Examples:
        >>> record = WEIGHTS["dgnet_r50.tv_in1k"]
        >>> record.model, record.top1, record.origin
        ('dgnet_r50', 76.13, 'torchvision')
    """

    name: str
    model: str
    url: str
    sha256: str | None
    preprocessing: Preprocessing
    top1: float | None
    origin: str
    licence: str
    size: float

    @property
    def tag(self) -> str:
        """The name without the model."""
        return self.name.removeprefix(f"{self.model}.")

    @property
    def restricted(self) -> bool:
        """Whether the licence must be accepted before the file is downloaded."""
        return self.licence == RESEARCH_ONLY

    def describe(self) -> dict[str, str]:
        """What is written next to the tensors of the file."""
        images = self.preprocessing
        said = {
            "model": self.model,
            "weights": self.name,
            "source": self.url,
            "origin": self.origin,
            "licence": self.licence,
            "mean": str(images.mean),
            "std": str(images.std),
            "channel_order": images.channel_order,
        }
        return said if self.top1 is None else {**said, "top1": str(self.top1)}


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
# The authors' files on Google Drive by tag, with their top-1: of the first release, which states
# none; of the second after 120 epochs, and after 200 with mixup and label smoothing.
_AUTHORS: dict[str, dict[str, tuple[str, float | None]]] = {
    "authors_v1": {
        "aognet_12m_released": ("1MTPFR8C9tCXFNeYgn9NqZ3wOJt8ZeMm7", None),
        "aognet_40m_released": ("1t7gGiNcP8L6TSzLDHg8qcb8G_x-nlIfV", None),
    },
    "authors": {
        "aognet_12m_released": ("1PsA2EvEw7wsCGhzp65Lfq3w1pvkU65o0", 77.78),
        "aognet_40m_released": ("1u-ToLniZVEkBlbSGQL49A3V72cXS5Dwd", 80.16),
    },
    "authors_mixup": {
        "aognet_12m_released": ("14gZ18L4mqHWI79P3d-gY01jqqGVsA9hB", 78.37),
        "aognet_40m_released": ("1MugHc_9rn5wR7d1Hyx4oaGjc64l8v_aG", 81.30),
    },
}
_AUTHORS_SIZES = {"aognet_12m_released": 47.0, "aognet_40m_released": 154.0}


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
        size=weights.meta["_file_size"],
    )


def _records() -> dict[str, WeightRecord]:
    records = [
        WeightRecord(
            name=f"{model}.{tag}",
            model=model,
            url=f"https://drive.google.com/uc?id={drive_id}",
            sha256=None,
            preprocessing=find_variant(model).preprocessing,
            top1=top1,
            origin="the authors of AOGNet, github.com/iVMCL/AOGNet-v2",
            licence=RESEARCH_ONLY,
            size=_AUTHORS_SIZES[model],
        )
        for tag, rows in _AUTHORS.items()
        for model, (drive_id, top1) in rows.items()
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


def is_published(source: str | Path) -> bool:
    """Whether a source is the name of a record or a tag, not a path or an address."""
    return source in WEIGHTS or any(source == record.tag for record in WEIGHTS.values())


def similar_weights(source: str | Path) -> str:
    """The names and tags that a misspelt one may have meant, a clause for messages.

    Examples:
        >>> similar_weights("autors_mixup")
        " (did you mean 'authors_mixup'?)"
    """
    return did_you_mean(source, [*WEIGHTS, *(record.tag for record in WEIGHTS.values())])


def find_record(source: str | Path, variant: Variant | None = None) -> WeightRecord | None:
    """The record that a name, or a tag of a variant's, stands for; None for a path or an address.

    Args:
        source: see :func:`gram_backbones.weights.published.read_weights`.
        variant: row of the network that is to be filled.

    Raises:
        WeightError: the record is of another model, or the model has no weights of this tag.

    Examples:
        >>> find_record("tv_in1k", find_variant("dgnet_r50")).url
        'https://download.pytorch.org/models/resnet50-0676ba61.pth'
        >>> find_record("dgnet_r50.tv_in1k").top1
        76.13
        >>> find_record("my_weights.pth") is None
        True
    """
    if not is_published(source):
        return None
    models = [] if variant is None else _models_of(variant)
    record = WEIGHTS.get(str(source))
    if record is not None:
        if models and record.model not in models:
            raise WeightError(f"{record.name} is for {record.model}, not for {models[0]}")
        return record
    for model in models:
        if record := WEIGHTS.get(f"{model}.{source}"):
            return record
    raise WeightError(f"there are no weights {str(source)!r} here; {known_weights(variant)}")


def known_weights(variant: Variant | None) -> str:
    """Which published weights a variant has, or which models have some; for messages.

    Examples:
        >>> known_weights(find_variant("dgnet_r50"))
        'dgnet_r50 has tv_in1k, tv2_in1k'
    """
    models = [] if variant is None else _models_of(variant)
    own = [record.tag for record in WEIGHTS.values() if record.model in models]
    name = models[0] if models else "this network"
    if own:
        return f"{name} has {', '.join(own)}"
    others = dict.fromkeys(record.model for record in WEIGHTS.values())
    return f"{name} has no published weights; models that have some: {', '.join(others)}"


def _models_of(variant: Variant) -> list[str]:
    return [name for name in list_models() if variant.takes_weights_of(find_variant(name))]
