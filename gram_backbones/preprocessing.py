"""What an image must look like before it enters a network; kept with the weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """Per-channel normalisation ``(pixel - mean) / std``, pixels in [0, 255].

    Attributes:
        mean, std: one value per channel, in the order of ``channel_order``.
        channel_order: ``"RGB"`` or ``"BGR"``.

    Examples:
        >>> from gram_backbones import AOGNet
        >>> images = AOGNet.find_variant("aognet_4m").preprocessing
        >>> images.mean, images.channel_order
        ((123.675, 116.28, 103.53), 'RGB')
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str


IMAGENET_RGB = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "RGB")
# Of CIFAR-10's training images; CIFAR-100's differ by at most 6 and are normalised alike, so that a
# network's preprocessing does not depend on which of the two it was trained on.
CIFAR_RGB = Preprocessing((125.307, 122.950, 113.865), (62.993, 62.089, 66.705), "RGB")
