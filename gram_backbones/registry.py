"""The families, their variants, and how to build a model with fresh weights by name."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any, NamedTuple

from .aognet import AOGNet
from .dgnet import DGNet
from .staged import StagedBackbone, Variant
from .suggestions import did_you_mean

_FAMILIES: list[type[StagedBackbone]] = [AOGNet, DGNet]


def register_family(family: type[StagedBackbone]) -> type[StagedBackbone]:
    """Register the rows of a family's table as models; also works as a class decorator.

    Raises:
        ValueError: a model of one of its names is registered already.

    Examples:
        >>> row = AOGNet.find_variant("aognet_4m", channels=(16, 32, 64, 128, 256))
        >>> @register_family
        ... class NarrowAOGNet(AOGNet):
        ...     VARIANTS = {"aognet_narrow": row}
        >>> build_model("aognet_narrow", features_only=True).feature_channels["res5"]
        256
    """
    if taken := sorted({name for f in _FAMILIES for name in f.VARIANTS} & set(family.VARIANTS)):
        raise ValueError(f"models named {taken} are registered already")
    _FAMILIES.append(family)
    return family


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, sorted.

    Examples:
        >>> list_models("dgnet_r??")
        ['dgnet_r18', 'dgnet_r34', 'dgnet_r50']
    """
    return sorted(name for f in _FAMILIES for name in f.VARIANTS if fnmatch(name, pattern))


def find_variant(name: str) -> Variant:
    """The row of the model with this name.

    Raises:
        ValueError: unknown name.

    Examples:
        >>> find_variant("aognet_4m").channels
        (16, 56, 120, 256, 640)
    """
    for family in _FAMILIES:
        if name in family.VARIANTS:
            return family.VARIANTS[name]
    known = list_models()
    meant = did_you_mean(name, known)
    raise ValueError(f"there is no model named {name!r}{meant}; allowed are {known}")


class FeatureInfo(NamedTuple):
    """What a feature map is like.

    Attributes:
        channels: of the map.
        stride: pixels of the image per pixel of the map, at the default output stride.
    """

    channels: int
    stride: int


def feature_info(name: str) -> dict[str, FeatureInfo]:
    """Channels and strides of a model's features, without building its weights.

    Args:
        name: one of :func:`list_models`.

    Returns:
        By name, from ``stem`` to the last stage. Features by index leave the stem out: index 0 is
        ``res2``.

    Raises:
        ValueError: unknown name.

    Examples:
        >>> feature_info("aognet_12m_released")["res5"]
        FeatureInfo(channels=824, stride=32)
        >>> [info.channels for info in feature_info("dgnet_r50").values()]
        [64, 256, 512, 1024, 2048]
    """
    channels, strides = find_variant(name).feature_shapes()
    return {feature: FeatureInfo(channels[feature], strides[feature]) for feature in channels}


def build_model(
    name: str, *, num_classes: int = 1000, features_only: bool = False, **options: Any
) -> StagedBackbone:
    """A model with fresh weights; arguments as in :func:`gram_backbones.create_model`."""
    return find_variant(name).build(num_classes=None if features_only else num_classes, **options)
