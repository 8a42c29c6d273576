"""Training recipes as rows, and the choice of one for a model and data set.

What the papers leave open is marked [choice]. Weight decay covers every parameter, DG-Net's router
biases and thresholds included, as neither paper exempts any; where ``decay_norms`` is False, all
but the scales and offsets of norms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch

from ..registry import find_variant
from ..suggestions import did_you_mean

AUGMENTATIONS = ("resized_crop", "padded_crop")


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: SGD with momentum 0.9 and a half-period cosine.

    Attributes:
        source: origin of the numbers.
        lr: learning rate at the end of the warm-up, for batches of ``batch`` images.
        batch: images per update, over all processes.
        epochs: passes over the data, warm-up included.
        weight_decay: L2 penalty.
        optimizer: timm's name, ``"momentum"`` for classical and ``"sgd"`` for Nesterov's momentum.
        decay_norms: whether scales and offsets of norms decay too.
        goyal_start: whether the last norm of every residual block starts with scale 0, and the
            classifier with a standard deviation of 0.01.
        warmup_epochs: length of the linear warm-up.
        warmup_start: learning rate of the first update, as a share of ``lr``.
        label_smoothing: share of the target that is spread over all classes.
        mixup: α of mixup's Beta distribution, 0 for none.
        dropout: rate; of AOGNet's node operations, or of the layer before a DG-Net's classifier.
        ema_decay: decay of a moving average of the weights, which is evaluated too; None for no
            average. It does not change the training [choice: the papers have none].
        image_size: pixels, height and width.
        augmentation: ``"resized_crop"``, a random part of the image, or ``"padded_crop"``, a random
            crop after padding by 4 pixels; both with random horizontal flips.

    Raises:
        ValueError: a number is out of range, or the augmentation is unknown.
    """

    source: str
    lr: float
    batch: int
    epochs: int
    weight_decay: float
    optimizer: str = "momentum"
    decay_norms: bool = True
    goyal_start: bool = False
    warmup_epochs: float = 5
    warmup_start: float = 0.25
    label_smoothing: float = 0.0
    mixup: float = 0.0
    dropout: float = 0.0
    ema_decay: float | None = 0.9999
    image_size: int = 224
    augmentation: str = "resized_crop"

    def __post_init__(self):
        for name in ("lr", "batch", "epochs", "image_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}; it must be at least 0 and below "
                f"{self.epochs}"
            )
        for name in ("label_smoothing", "dropout", "warmup_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be at least 0 and below 1"
                )
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation is {self.augmentation!r}; allowed are {AUGMENTATIONS}")

    def scaled_lr(self, batch: int) -> float:
        """The learning rate for batches of ``batch`` images, in proportion (Goyal et al. 2017)."""
        return self.lr * batch / self.batch

    def with_changes(
        self, *, epochs: int | None = None, image_size: int | None = None, ema: bool = True
    ) -> Recipe:
        """The recipe with another length or image size, or without a moving average.

        The warm-up keeps its length, but is at most a tenth of the run.
        """
        epochs = self.epochs if epochs is None else epochs
        return replace(
            self,
            epochs=epochs,
            warmup_epochs=min(self.warmup_epochs, epochs / 10),
            image_size=self.image_size if image_size is None else image_size,
            ema_decay=self.ema_decay if ema else None,
        )


_AOGNET = Recipe(
    # Warm-up as in Goyal et al.: from the learning rate of 256 images to that of 1024.
    source="AOGNet, section 4.2",
    lr=0.4,
    batch=1024,
    epochs=120,
    weight_decay=1e-4,
    dropout=0.1,
)
# DG-Net, appendix 6.1: a total batch of 1024, momentum 0.9, 5 epochs of warm-up in all three.
RECIPES = {
    "aognet_imagenet": _AOGNET,
    # The authors' better checkpoints had 200 epochs with both; their strengths are not known
    # [choice: the usual ones].
    "aognet_imagenet_mixup": replace(
        _AOGNET,
        source="AOGNet's published checkpoints with mixup and label smoothing",
        epochs=200,
        mixup=0.2,
        label_smoothing=0.1,
    ),
    # Table 5 comes without a recipe [choice: the usual one of this data set, cosine for steps].
    "aognet_cifar": Recipe(
        source="ours; AOGNet's Table 5 gives none",
        lr=0.1,
        batch=128,
        epochs=300,
        weight_decay=5e-4,
        optimizer="sgd",
        dropout=0.1,
        ema_decay=0.999,
        image_size=32,
        augmentation="padded_crop",
    ),
    # For short comparisons of networks of the size of ResNet-20.
    "cifar_small": Recipe(
        source="ours; for small networks on CIFAR",
        lr=0.1,
        batch=128,
        epochs=10,
        weight_decay=5e-4,
        optimizer="sgd",
        ema_decay=None,
        image_size=32,
        augmentation="padded_crop",
    ),
    # "Other details" as in Goyal et al., section 5.1: Nesterov's momentum, no decay of norms, and
    # how blocks and classifier start.
    "dgnet_resnet": Recipe(
        source="DG-Net, appendix 6.1, ResNets and ResNeXt",
        lr=0.4,
        batch=1024,
        epochs=100,
        weight_decay=1e-4,
        optimizer="sgd",
        decay_norms=False,
        goyal_start=True,
        label_smoothing=0.1,
    ),
    # "Other details" as in RegNet's pycls: Nesterov's momentum, warm-up from a tenth.
    "dgnet_regnet": Recipe(
        source="DG-Net, appendix 6.1, RegNets",
        lr=0.8,
        batch=1024,
        epochs=100,
        weight_decay=5e-5,
        optimizer="sgd",
        warmup_start=0.1,
        label_smoothing=0.1,
    ),
    "dgnet_mobilenet_v2": Recipe(
        source="DG-Net, appendix 6.1, MobileNetV2",
        lr=0.4,
        batch=1024,
        epochs=200,
        weight_decay=4e-5,
        label_smoothing=0.1,
        dropout=0.2,
    ),
}


def find_recipe(model: str, dataset: str, name: str | None = None) -> Recipe:
    """A recipe by name, or the default of a model on a data set.

    Args:
        model: name of a model.
        dataset: ``"folder"``, ``"cifar10"`` or ``"cifar100"``.
        name: row of ``RECIPES``.

    Raises:
        ValueError: the name or model is unknown, or the model has no default on the data set.
    """
    if name is None:
        rows = find_variant(model).recipes
        name = next((recipe for pattern, recipe in rows if fnmatch(dataset, pattern)), None)
        if name is None:
            raise ValueError(
                f"{model} has no default recipe for {dataset}; choose one of {sorted(RECIPES)}"
            )
    if name not in RECIPES:
        meant = did_you_mean(name, RECIPES)
        raise ValueError(f"there is no recipe named {name!r}{meant}; allowed are {sorted(RECIPES)}")
    return RECIPES[name]
