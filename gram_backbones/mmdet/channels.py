"""``in_channels="auto"`` in a detector's config: channels that the config itself determines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope

from .interface import MMDetBackbone

AUTO = ("auto", ["auto"])


def fill_channels(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill ``in_channels="auto"`` of the necks and heads in a detector's config.

    A neck reads the backbone, the second of several necks the first; heads read the last neck, or
    the backbone where there is none, and RoI heads the ``shared_head`` where there is one. Filled
    in is a list with the channels of all maps, or a number if there is only one map or if all are
    of one neck, which has one number of ``out_channels``. ``["auto"]`` always is filled as a list.
    Detectors within a model, such as a semi-supervised one's, are filled too.

    Args:
        model: config of a model, which is not changed.

    Raises:
        ValueError: the channels are not determined: the backbone is not of this package, or a neck
            or shared head has no ``out_channels``.

    Examples:
        >>> model = dict(
        ...     backbone=dict(type="DGNet", variant="dgnet_r18"),
        ...     neck=dict(type="FPN", in_channels="auto", out_channels=256, num_outs=5),
        ...     rpn_head=dict(type="RPNHead", in_channels="auto"),
        ... )
        >>> filled = fill_channels(model)
        >>> filled["neck"]["in_channels"], filled["rpn_head"]["in_channels"]
        ([64, 128, 256, 512], 256)
    """
    if not _has_auto(model):
        return model
    filled = {k: fill_channels(v) if _is_detector(v) else v for k, v in model.items()}
    if not _is_detector(model):
        return filled
    channels: int | list[int] | None = None
    if _has_auto([model.get("neck")]) or not model.get("neck"):
        channels = _backbone_channels(model["backbone"])
    if neck := model.get("neck"):
        necks = []
        for item in neck if isinstance(neck, (list, tuple)) else [neck]:
            necks.append(_filled(item, channels))
            channels = item.get("out_channels")
        filled["neck"] = necks if isinstance(neck, (list, tuple)) else necks[0]
    for key, value in model.items():
        if key == "roi_head":
            filled[key] = _filled_roi_head(value, channels)
        elif key.endswith("head") and isinstance(value, Mapping):
            filled[key] = _filled(value, channels)
    return filled


def _is_detector(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("backbone"), Mapping)


def _has_auto(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get("in_channels") in AUTO or any(map(_has_auto, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_auto, value))


def _filled(part: Mapping[str, Any], channels: int | list[int] | None) -> dict[str, Any]:
    """A neck or head whose own ``in_channels`` is filled."""
    wanted = part.get("in_channels")
    if wanted not in AUTO:
        return dict(part)
    if channels is None:
        raise ValueError(
            f"in_channels of {part.get('type')} is {wanted!r}, but what it reads has no "
            "out_channels; give the number"
        )
    if wanted == ["auto"]:
        return {**part, "in_channels": channels if isinstance(channels, list) else [channels]}
    if isinstance(channels, list) and len(channels) == 1:
        return {**part, "in_channels": channels[0]}
    return {**part, "in_channels": channels}


def _filled_roi_head(head: Any, channels: int | list[int] | None) -> Any:
    """The heads in a RoI head; its ``shared_head`` changes the channels."""
    if not _has_auto(head):
        return head
    if shared := head.get("shared_head"):
        channels = getattr(_built(shared), "out_channels", None)
    return {key: _filled_tree(value, channels) for key, value in head.items()}


def _filled_tree(value: Any, channels: int | list[int] | None) -> Any:
    if isinstance(value, (list, tuple)):  # Cascade R-CNN has a list of heads
        return [_filled_tree(item, channels) for item in value]
    return _filled(value, channels) if isinstance(value, Mapping) else value


def _backbone_channels(backbone: Mapping[str, Any]) -> list[int]:
    built = _built(backbone)
    if not isinstance(built, MMDetBackbone):
        raise ValueError(
            f"in_channels is 'auto' for the backbone {backbone.get('type')!r}; allowed are the "
            "backbones of gram_backbones, which state their channels"
        )
    return list(built.out_channels)


def _built(part: Mapping[str, Any]) -> Any:
    """A backbone or shared head without memory for its weights, to ask for its channels."""
    with torch.device("meta"):
        # Another scope may be the default, of a runner that this process had before.
        with DefaultScope.overwrite_default_scope("mmdet"):
            return MODELS.build({**part, "init_cfg": None})
