"""torchvision's detectors on our backbones: a feature pyramid, and image sizes for DG-Net.

torchvision's own ``BackboneWithFPN`` runs a network's children one after the other, which a DG-Net
is not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from .dgnet.image_sizes import ImageSizes
from .staged import StagedBackbone


class BackboneWithFPN(nn.Module):
    """A backbone with a feature pyramid, as torchvision's detectors read it.

    Maps images ``(B, 3, H, W)`` to maps ``(B, out_channels, H / S, W / S)`` by name: ``"0"``,
    ``"1"``, … from the finest of the backbone's ``out_features``, then those of ``extra_blocks``.

    Args:
        body: an ``AOGNet`` or ``DGNet`` without a classifier.
        out_channels: of every map.
        extra_blocks: torchvision's block for further maps. Default: one map by max pooling, called
            ``"pool"``.
        norm_layer: norm of the pyramid's convolutions, a factory ``channels -> module``.

    Raises:
        ValueError: ``body`` is a classifier or another network.

    Examples:
        >>> import torch
        >>> from gram_backbones import DGNet
        >>> backbone = BackboneWithFPN(DGNet("dgnet_r18"), 64)
        >>> {name: tuple(x.shape) for name, x in backbone(torch.randn(1, 3, 64, 64)).items()}
        {'0': (1, 64, 16, 16), '1': (1, 64, 8, 8), '2': (1, 64, 4, 4), '3': (1, 64, 2, 2), \
'pool': (1, 64, 1, 1)}
    """

    def __init__(
        self,
        body: StagedBackbone,
        out_channels: int = 256,
        *,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ):
        super().__init__()
        if not isinstance(body, StagedBackbone):
            raise ValueError(
                f"body is a {type(body).__name__}; allowed are AOGNet and DGNet; for others "
                "torchvision has its own BackboneWithFPN"
            )
        if body.num_classes is not None:
            raise ValueError(
                f"num_classes of the backbone is {body.num_classes}; allowed is None, which "
                "returns feature maps"
            )
        self.body = body
        channels = [body.feature_channels[name] for name in body.out_features]
        extra_blocks = LastLevelMaxPool() if extra_blocks is None else extra_blocks
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks, norm_layer)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See the class."""
        features = self.body(x)
        maps = features.values() if isinstance(features, dict) else features
        return self.fpn(OrderedDict((str(index), map_) for index, map_ in enumerate(maps)))


def pass_image_sizes(detector: nn.Module) -> nn.Module:
    """Let a detector of torchvision pass the unpadded sizes of its images to a DG-Net.

    torchvision pads the images of a batch to one size and hands the backbone the batch alone, so
    that the routers would pool the padding too. Nothing changes for other backbones.

    Args:
        detector: any detector with torchvision's ``transform``, in whose ``backbone``, or its
            ``body``, the DG-Net is.

    Returns:
        The same detector.

    Examples:
        >>> from torchvision.models.detection import FasterRCNN
        >>> from gram_backbones import DGNet
        >>> backbone = BackboneWithFPN(DGNet("dgnet_r18"), 64)
        >>> detector = pass_image_sizes(FasterRCNN(backbone, num_classes=3))
    """
    backbone: Any = detector.backbone
    sizes = ImageSizes(getattr(backbone, "body", backbone))
    transform: Any = detector.transform
    transform.register_forward_hook(partial(_store_sizes, sizes))
    return detector


def _store_sizes(sizes: ImageSizes, transform: nn.Module, args: Any, output: Any) -> None:
    images, _ = output
    sizes.sizes = list(images.image_sizes)
