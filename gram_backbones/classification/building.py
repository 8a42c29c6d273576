"""The parts of a run: its configuration, network, optimiser and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..registry import build_model, find_variant
from ..staged import StagedBackbone
from .recipes import Recipe

# Arguments of a model that follow from the data.
_FROM_DATA = ("num_classes", "features_only", "out_features", "in_channels")
AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run. With the same data, processes and workers, its weights are the same.

    Attributes:
        model: name of a model.
        dataset: data set that it is trained on, for the record.
        recipe: how it is trained.
        num_classes: outputs of the classifier.
        batch_size: images per update, over all processes.
        lr: learning rate at the end of the warm-up; None scales the recipe's to ``batch_size``.
        seed: seed of initial weights, order of images and all other randomness; 0 or more.
        amp: data type of autocast: ``"none"``, ``"bf16"`` or ``"fp16"`` (on GPUs).
        model_kwargs: further arguments of the model.
        weights: file that the run starts from; None for random weights.

    Raises:
        ValueError: a number is out of range, or ``amp`` is unknown.
    """

    model: str
    dataset: str
    recipe: Recipe
    num_classes: int
    batch_size: int
    lr: float | None = None
    seed: int = 0
    amp: str = "none"
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be positive")
        if self.amp not in AMP_DTYPES:
            raise ValueError(f"amp is {self.amp!r}; allowed are {sorted(AMP_DTYPES)}")

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.recipe.scaled_lr(self.batch_size) if self.lr is None else self.lr

    def record(self) -> dict[str, Any]:
        """Settings that a resumed run must share, as plain values."""
        own = asdict(self)
        recipe = {key: value for key, value in own.pop("recipe").items() if key != "source"}
        return {**recipe, **own, "lr": self.peak_lr}


def build_classifier(
    name: str, num_classes: int, recipe: Recipe, model_kwargs: Mapping[str, Any] | None = None
) -> StagedBackbone:
    """A model with fresh weights and a recipe's dropout.

    Args:
        name: of the model.
        num_classes: outputs of the classifier.
        recipe: gives dropout, initialisation and image size.
        model_kwargs: further arguments of the model; AOGNet's ``dropout`` overrides the recipe's.

    Raises:
        ValueError: the name is unknown, the model does not take an argument, the recipe has dropout
            but the model has no such layer, or images are smaller than the model's total stride.
    """
    kwargs = dict(model_kwargs or {})
    if settled := sorted(kwargs.keys() & set(_FROM_DATA)):
        raise ValueError(f"model_kwargs has {settled[0]!r}, which follows from the data")
    takes_dropout = find_variant(name).takes("dropout")
    if takes_dropout:
        kwargs = {"dropout": recipe.dropout, **kwargs}
    try:
        model = build_model(name, num_classes=num_classes, **kwargs)
    except (AttributeError, TypeError) as error:  # an unknown argument, or one of another type
        if not model_kwargs:
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} does not take {dict(model_kwargs)}: {reason}") from error
    if not takes_dropout:
        layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        if recipe.dropout and not layers:
            raise ValueError(
                f"dropout is {recipe.dropout}; it must be 0, as {name} has no such layer"
            )
        for layer in layers:
            layer.p = recipe.dropout
    if recipe.goyal_start:
        _start_as_goyal(model)
    if recipe.image_size < model.size_divisibility:
        raise ValueError(
            f"image_size is {recipe.image_size}; {name} needs at least {model.size_divisibility}"
        )
    return model


def _start_as_goyal(model: nn.Module) -> None:
    """Blocks start as their shortcuts, and logits near 0 (Goyal et al. 2017, section 5.1).

    Raises:
        ValueError: the model has none of torchvision's residual blocks.
    """
    blocks = [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    if not blocks:
        raise ValueError("this recipe is for ResNets and ResNeXts: it initialises their blocks")
    for block in blocks:
        last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
        nn.init.zeros_(last.weight)
    nn.init.normal_(cast(nn.Linear, model.fc).weight, std=0.01)


def build_optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, with weight decay for the norms only if the recipe says so."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    norms = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    ]
    groups = param_groups_weight_decay(
        model,
        recipe.weight_decay,
        weight_decay_exclude_1d=False,
        no_weight_decay_list=() if recipe.decay_norms else norms,
    )
    return create_optimizer_v2(groups, opt=recipe.optimizer, lr=lr, momentum=0.9)


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, lr: float, updates: int
) -> CosineLRScheduler:
    """Linear warm-up, then half a cosine period down to 0; stepped after every update.

    Args:
        optimizer: optimiser whose learning rate is set.
        recipe: gives the number of epochs and the warm-up.
        lr: learning rate at the end of the warm-up.
        updates: updates per epoch.
    """
    warmup = round(recipe.warmup_epochs * updates)
    return CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs * updates - warmup,
        warmup_t=warmup,
        warmup_lr_init=lr * recipe.warmup_start,
        warmup_prefix=True,
        t_in_epochs=False,
    )
