"""Top-1 accuracy under a one-step white-box attack (AOGNet paper, Table 2), with Foolbox.

The attack is FGSM: ``x + ε · sign(∂ cross-entropy / ∂x)``, clipped to [0, 1]. ε is the size of the
step in every pixel and channel (L-infinity) on images in [0, 1], before normalisation: 0.1 is 25.5
grey levels of 255. Table 2 gives ε = 0.1 and 0.3 without a unit. Foolbox 1, of the paper's time,
measured ε in the same way, as a fraction of the range of pixel values. By default it also tried
smaller steps. The paper does not say whether these counted; here they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

try:
    import foolbox
except ImportError as error:
    raise ImportError(
        "gram_backbones.classification.robustness needs Foolbox, which cannot be imported "
        f"({error}): pip install foolbox"
    ) from error

from ..preprocessing import Preprocessing
from ..registry import build_model
from ..weights.loading import load_classifier_weights
from .data import open_folder


class RobustAccuracy(NamedTuple):
    """Top-1 accuracies, in [0, 1].

    Attributes:
        images: how many images were classified.
        clean: on the original images.
        attacked: under attack, one per epsilon.
    """

    images: int
    clean: float
    attacked: list[float]


def top1_under_fgsm(
    model: nn.Module,
    preprocessing: Preprocessing,
    batches: Iterable[tuple[Tensor, Tensor]],
    epsilons: Sequence[float],
    device: str | torch.device = "cpu",
) -> RobustAccuracy:
    """Classify the original images, and the images after one FGSM step of each size.

    Args:
        model: maps normalised images ``(B, 3, H, W)`` to logits ``(B, classes)``. It is left on the
            device, in eval mode and with frozen parameters.
        preprocessing: preprocessing that the model was trained with.
        batches: RGB images ``(B, 3, H, W)`` in [0, 1] and labels ``(B,)``.
        epsilons: sizes of the step, see the module.
        device: where to compute.

    Raises:
        ValueError: there is no epsilon, one is outside [0, 1], or there are no images.
    """
    check_epsilons(epsilons)
    attacked = _for_foolbox(model, preprocessing, device)
    attack = foolbox.attacks.LinfFastGradientAttack()
    images, clean, hits = 0, 0, torch.zeros(len(epsilons), dtype=torch.long)
    for x, labels in batches:
        x, labels = x.to(device), labels.to(device)
        _, _, fooled = attack(attacked, x, labels, epsilons=list(epsilons))
        images += len(x)
        clean += int((attacked(x).argmax(-1) == labels).sum())
        hits += fooled.logical_not().sum(1).cpu()
    if not images:
        raise ValueError("there are no images to classify")
    return RobustAccuracy(images, clean / images, (hits / images).tolist())


def check_epsilons(epsilons: Sequence[float]) -> None:
    """Check that step sizes make sense on images in [0, 1].

    Raises:
        ValueError: there is none, or one is outside [0, 1].
    """
    if not epsilons:
        raise ValueError("no epsilon is given; give numbers from 0 to 1")
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise ValueError(
                f"epsilon is {epsilon}; allowed are 0 to 1, on images in [0, 1] "
                "(8 grey levels of 255 are 0.0314)"
            )


def _for_foolbox(
    model: nn.Module, preprocessing: Preprocessing, device: str | torch.device
) -> foolbox.PyTorchModel:
    """The model on images in [0, 1], with its normalisation inside."""
    mean, std = (
        torch.tensor(values, device=device) / 255
        for values in (preprocessing.mean, preprocessing.std)
    )
    normalisation = dict(mean=mean, std=std, axis=-3)
    if preprocessing.channel_order == "BGR":
        normalisation["flip_axis"] = -3
    # Foolbox computes gradients by backward(), which trainable parameters would accumulate.
    model = model.eval().requires_grad_(False)
    return foolbox.PyTorchModel(
        model, bounds=(0, 1), device=torch.device(device), preprocessing=normalisation
    )


def open_image_folder(
    folder: str | Path, size: int = 224, resize: int | None = None
) -> ImageFolder:
    """Images ``(3, size, size)`` in [0, 1] and labels, from a folder with one folder per class.

    Args:
        folder: folder of the classes, which are labelled in the order of their names.
        size: pixels of the central crop.
        resize: pixels of the shorter side before that. Default: ``size / 0.875``, 256 for 224.

    Raises:
        FileNotFoundError: there is no such folder, or a class without images.
        ValueError: the crop is empty or larger than the resized image.
    """
    folder = Path(folder).expanduser()
    resize = round(size / 0.875) if resize is None else resize
    if not 1 <= size <= resize:
        raise ValueError(
            f"size is {size}; allowed are 1 to {resize}, the size to which images are resized"
        )
    steps = [transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor()]
    return open_folder(folder, transforms.Compose(steps))


def load_classifier(name: str, checkpoint: str | Path, num_classes: int) -> nn.Module:
    """A model of ``list_models()`` with all its weights from a file.

    Args:
        name: of the model.
        checkpoint: see :func:`gram_backbones.weights.files.read_weight_file`.
        num_classes: number of classes of the images.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, the file leaves a tensor of the model unfilled, or its
            classifier has another number of classes.
    """
    model = build_model(name, num_classes=num_classes)
    load_classifier_weights(model, checkpoint)
    return model
