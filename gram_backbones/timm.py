"""timm adapter: importing it registers every model of ``list_models()`` with timm.

::

    import timm, gram_backbones.timm
    timm.create_model("aognet_12m", num_classes=10)
    timm.create_model("dgnet_r50", features_only=True, out_indices=(1, 2, 3, 4))

Tensors have the same names as in the core classes, also with ``features_only``, so weights are
interchangeable.
"""

# Annotations must not be strings: torch.fx copies those of forward, torch.jit.script reads them.
import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .versions import OLDEST, check_version

try:
    import timm  # the library: imports are absolute
    from timm.layers import create_classifier, get_norm_layer
    from timm.models import (
        FeatureHookNet,
        FeatureInfo,
        build_model_with_cfg,
        generate_default_cfgs,
        register_model,
    )
    from timm.models._features import (
        FeatureDictNet,
        FeatureGetterNet,
        FeatureListNet,
        feature_take_indices,
    )
    from timm.models._features_fx import FeatureGraphNet
except ImportError as error:
    raise ImportError(
        f"gram_backbones.timm needs timm {OLDEST['timm']} or newer ({error}): pip install -U timm"
    ) from error
else:
    check_version("timm", timm.__version__)

from .aognet import AOGNet
from .dgnet import DGNet
from .fused import fast_format, format_of, run_all
from .preprocessing import CIFAR_RGB
from .staged import StagedBackbone, Variant, remove_module
from .weights.files import WeightFile
from .weights.fit import WeightError, fit
from .weights.loading import load_weights

__all__ = ["TimmAOGNet", "TimmDGNet", "register_family"]  # register_model adds the functions

logger = logging.getLogger(__name__)


class TimmInterface(StagedBackbone):
    """Mixin with timm's model interface; put it before a core class in a class statement.

    Maps images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``, to pooled features
    ``(B, num_features)`` where ``num_classes`` is 0, or to a list of feature maps where
    ``features_only`` was given.

    Feature 0 is the stem before its max pooling, where it has one: decoders built on timm expect
    strides 2, 4, 8, 16, 32. The others are the stages, feature 1 is ``res2``.

    Args:
        variant: name of a row of the family's ``VARIANTS``.
        num_classes: outputs of the classifier, 0 for none.
        in_chans: channels of the image.
        drop_rate: dropout before the classifier. Default: the network's own, 0.2 for MobileNetV2
            and 0 for the others.
        drop_path_rate: stochastic depth of the last block; the core classes' ``drop_path``.
        global_pool: timm's pooling types; ``""`` without a classifier leaves the final map.
        norm_layer: a norm by timm's name, its class, or a factory; ``norm`` of the core class.
        act_layer: the activation that the network is defined with, by name or as its class.
        kwargs: of the core class: ``norm``, ``with_cp``, ``frozen_stages``, …

    Attributes:
        feature_info: timm's record of the feature maps, see above.
        num_features: channels of the final map, which :meth:`forward_features` returns.
        head_hidden_size: of the pooled features, which the classifier reads.
        return_layers: with ``features_only``, other features to return: a path and an index each,
            as in timm's own feature networks. Transformers sets it for its hidden states.

    Raises:
        ValueError: no channels, pooling switched off under a classifier, another activation, or an
            argument that the core class refuses.
    """

    def __init__(
        self,
        variant: str,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        norm_layer: str | Callable[..., nn.Module] | None = None,
        act_layer: str | type[nn.Module] | None = None,
        **kwargs: Any,
    ):
        if in_chans < 1:
            raise ValueError(f"in_chans is {in_chans}; allowed are 1 and more")
        if drop_path_rate:
            if not self.VARIANTS[variant].takes("drop_path"):
                raise ValueError(f"drop_path_rate is {drop_path_rate}; allowed for {variant} is 0")
            kwargs["drop_path"] = drop_path_rate
        if norm_layer is not None:
            kwargs["norm"] = _norm_factory(norm_layer, kwargs.get("norm"))
        # The classifier is built in any case: it tells the width of the pooled features.
        super().__init__(variant, num_classes=num_classes or 1, **kwargs)
        self._check_activation(act_layer)
        self.in_chans = in_chans
        if in_chans != 3:
            _set_in_channels(cast(nn.Conv2d, self.get_submodule(self.variant.first_conv)), in_chans)
        self.num_features = self.head_hidden_size = self.get_classifier().in_features
        # MobileNetV2's dropout stands next to its linear layer, which forward_head calls alone.
        own_rates = [m.p for m in self.modules() if isinstance(m, nn.Dropout)]
        self.drop_rate = (own_rates or [0.0])[0] if drop_rate is None else drop_rate
        self._stem_pools = isinstance(self.get_submodule(self.variant.stem_paths[-1]), nn.MaxPool2d)
        self.feature_info = self._describe_features()
        self.out_indices: list[int] | None = None
        self.return_dict = False
        self.return_layers: dict[str, str] | None = None
        self.global_pool, _ = create_classifier(self.num_features, 0, pool_type=global_pool)
        if num_classes == 0 or global_pool != "avg":
            self.reset_classifier(num_classes, global_pool)

    def _check_activation(self, act_layer: str | type[nn.Module] | None) -> None:
        own = next(type(m) for m in self.modules() if isinstance(m, (nn.ReLU, nn.ReLU6)))
        name = act_layer if isinstance(act_layer, str) else getattr(act_layer, "__name__", "")
        if act_layer is not None and name.lower() != own.__name__.lower():
            raise ValueError(f"act_layer is {act_layer!r}; allowed is nn.{own.__name__}")

    def _describe_features(self) -> list[dict[str, Any]]:
        stride = self.feature_strides["stem"]
        stem = self.variant.stem_paths[-2] if self._stem_pools else self.feature_path("stem")
        rows = [("stem", stride // 2 if self._stem_pools else stride, stem)]
        rows += [(n, self.feature_strides[n], self.feature_path(n)) for n in self.stage_names]
        return [
            dict(num_chs=self.feature_channels[name], reduction=reduction, module=module)
            for name, reduction, module in rows
        ]

    # The classifier

    def get_classifier(self) -> nn.Module:
        """The linear layer, an identity where ``num_classes`` is 0."""
        return self.get_submodule(self.variant.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one with fresh weights, or by none where ``num_classes`` is 0.

        Raises:
            ValueError: pooling switched off under a classifier.
        """
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        if num_classes and not pool_type:
            raise ValueError(f"global_pool is ''; with num_classes {num_classes} it takes a type")
        self.global_pool, linear = create_classifier(self.num_features, num_classes, pool_type)
        if num_classes:
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        parent, _, name = self.variant.classifier.rpartition(".")
        setattr(self.get_submodule(parent), name, linear.to(next(self.parameters())))
        self.num_classes = num_classes

    # Forward

    def _run(
        self, x: Tensor, take: Collection[int], depth: int
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The map after the first ``depth`` stages, and the features in ``take`` by index."""
        image, x = x, fast_format(x)
        if self._stem_pools:  # feature 0 is in the middle of the stem
            *paths, pool = self.variant.stem_paths
            x = run_all(map(self.get_submodule, paths), x)
            maps = {0: x} if 0 in take else {}
            x = self.get_submodule(pool)(x)
        else:
            x = self.run_feature("stem", x)
            maps = {0: x} if 0 in take else {}
        for index, name in enumerate(self.stage_names[:depth], 1):
            x = self.run_feature(name, x)
            if index in take:
                maps[index] = x
        return format_of(image, x), {index: format_of(image, m) for index, m in maps.items()}

    def forward_features(self, x: Tensor) -> Tensor:
        """The final map ``(B, num_features, H / S, W / S)``, S the stride of the last stage."""
        return self.finish(self._run(x, (), len(self.stage_names))[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the final map to logits, or with ``pre_logits`` to what the classifier reads."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor | list[Tensor] | dict[str, Tensor]:
        """See the class: logits, pooled features or feature maps."""
        if self.out_indices is not None:
            indices = self.out_indices
            if self.return_layers is not None:  # as far as the stages that are left
                listed = map(int, self.return_layers.values())
                indices = [index for index in listed if index <= len(self.stage_names)]
            maps = self._run(x, indices, max(indices))[1]
            if self.return_dict:
                return OrderedDict((str(index), maps[index]) for index in indices)
            return [maps[index] for index in indices]
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps in the order of ``indices``, and the final map before them.

        Args:
            x: images.
            indices: of the features, see the class; negative ones count from the end, an integer
                asks for the last ones, None for all.
            norm: has no effect; timm passes it.
            stop_early: leave out the stages beyond the last index.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the feature maps alone.

        Raises:
            ValueError: another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; allowed is 'NCHW'")
        take, last = feature_take_indices(len(self.feature_info), indices)
        early = stop_early or intermediates_only
        x, maps = self._run(x, take, last if early else len(self.stage_names))
        maps = [maps[index] for index in take]
        return maps if intermediates_only else (x if early else self.finish(x), maps)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last of these features; return the indices, none negative."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        removed, self.stage_names = self.stage_names[last:], self.stage_names[:last]
        if prune_head or removed:
            for path in self.before_pooling:
                remove_module(self, path)
            self.before_pooling = ()
            self.num_features = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        for name in removed:
            self.remove_feature(name)
            del self.feature_channels[name], self.feature_strides[name]
        self.frozen_stages = min(self.frozen_stages, last)
        return take

    # Weights

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """torch's; strictly, also tensors under other names, as :func:`load_weights` takes them.

        timm's ``checkpoint_path`` ends here. A base network's file starts a DG-Net as this network.

        Raises:
            WeightError: see :func:`gram_backbones.load_weights`; or the classifier is of another
                size.
        """
        if not strict or assign or state_dict.keys() == self.state_dict().keys():
            return super().load_state_dict(state_dict, strict, assign)
        found = load_weights(self, state_dict)
        weight = f"{self.variant.classifier}.weight"
        if self.num_classes and weight not in found.values:
            raise WeightError(
                f"the weights have no classifier for num_classes={self.num_classes}; to start a "
                "fresh one, give pretrained=True and pretrained_cfg_overlay=dict(file=PATH)"
            )
        return super().load_state_dict({}, strict=False)._replace(missing_keys=[])

    # Training

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass to save memory."""
        for module in self.modules():
            if hasattr(module, "with_cp"):
                module.with_cp = enable  # type: ignore[assignment] # for torch a tensor or module

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone.

        By default timm spares all vectors. Our own recipes follow the papers, which exempt nothing.
        """
        spared = self.variant.without_decay
        return {name for name, _ in self.named_parameters() if name.endswith(spared)}


class TimmAOGNet(TimmInterface, AOGNet):
    """AOGNet with timm's interface; arguments: see :class:`TimmInterface`."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth, for timm's layer-wise learning rates."""
        blocks = [(r"^res(\d+)\.transition", (0,)), (r"^res(\d+)\.blocks\.(\d+)", None)]
        return dict(stem=r"^stem", blocks=r"^res(\d+)" if coarse else blocks)


class TimmDGNet(TimmInterface, DGNet):
    """DG-Net with timm's interface; arguments: see :class:`TimmInterface`."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth, for timm's layer-wise learning rates.

        Routers and thresholds are grouped with the last block of their stage, as is a convolution
        before pooling.
        """
        places = []
        for key, names in self.block_names.items():
            places += [(n, (int(key),) if coarse else (int(key), i)) for i, n in enumerate(names)]
            places.append((f"graphs.{key}", places[-1][1]))
        places += [(path, places[-1][1]) for path in self.before_pooling]
        return dict(
            stem=rf"^(?:{'|'.join(map(re.escape, self.layout.stem))})\.",
            blocks=[(rf"^{re.escape(path)}\.", order) for path, order in places],
        )


def _set_in_channels(conv: nn.Conv2d, in_chans: int) -> None:
    """Give a convolution another number of input channels, with fresh weights."""
    trains = conv.weight.requires_grad
    weight = conv.weight.new_empty(conv.out_channels, in_chans, *conv.kernel_size)
    # As all the networks start it: fan-out does not depend on the input channels.
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    conv.in_channels = in_chans
    conv.weight = nn.Parameter(weight, requires_grad=trains)


def _norm_factory(norm_layer: str | Callable[..., nn.Module], norm: Any) -> Any:
    """The ``norm_layer`` of timm as the core classes' ``norm``.

    Raises:
        ValueError: timm knows no norm of this name, or both are given.
    """
    if norm is not None:
        raise ValueError(f"norm is {norm!r} and norm_layer {norm_layer!r}; give one of them")
    try:
        return get_norm_layer(norm_layer)
    except KeyError:
        raise ValueError(
            f"norm_layer is {norm_layer!r}; allowed are timm's names, classes and factories"
        ) from None


# Registration

# By timm's names and classes. The first two are the model itself: timm's own would put a prefix
# before the names of the tensors, and rebuild the model out of children that run one by one.
_WRAPPERS: dict[Any, Any] = {
    "list": FeatureListNet,
    "dict": FeatureDictNet,
    "hook": FeatureHookNet,
    "getter": FeatureGetterNet,
    "fx": FeatureGraphNet,
}


def _extract_features(
    wrapper: Any, model: TimmInterface, out_indices: int | Sequence[int] | None, **options: Any
) -> nn.Module:
    """``features_only``: a model that returns feature maps, cut behind the last one.

    Raises:
        ValueError: timm has no such ``feature_cls``.
    """
    name = wrapper.lower() if isinstance(wrapper, str) else wrapper
    if isinstance(name, str) and name not in _WRAPPERS:
        raise ValueError(f"feature_cls is {wrapper!r}; allowed are {sorted(_WRAPPERS)}")
    wrapper = _WRAPPERS.get(name, name)
    take, _ = feature_take_indices(len(model.feature_info), out_indices)
    if wrapper not in (FeatureListNet, FeatureDictNet):
        return wrapper(model, out_indices=tuple(take), **options)
    model.out_indices = model.prune_intermediate_layers(take)
    model.return_dict = wrapper is FeatureDictNet
    model.feature_info = FeatureInfo(model.feature_info, tuple(model.out_indices))
    return model


def _fitted(state: Mapping[str, Tensor], model: TimmInterface) -> dict[str, Tensor]:
    """The model's tensors out of a file that ``pretrained_cfg_overlay=dict(file=…)`` names.

    Raises:
        WeightError: see :func:`gram_backbones.weights.fit`; timm alone would start a model without
            a classifier, or with one of another size, at random where names do not match.
    """
    own, cfg = model.state_dict(), cast(dict[str, Any], model.pretrained_cfg)
    # timm converts the first convolution to another number of channels afterwards.
    name = f"{cfg['first_conv']}.weight"
    channels, (out, _, *kernel) = cfg["input_size"][0], own[name].shape
    own[name] = own[name].new_empty(out, channels, *kernel)
    found = fit(own, model.variant, WeightFile("the file of pretrained weights", state))
    found = found.after_start(model)
    for level, line in found.report():
        logger.log(level, line)
    started = model.state_dict()
    return {**{kept: started[kept] for kept in found.kept}, **found.values}


def _create(
    cls: type[TimmInterface],
    name: str,
    pretrained: bool = False,
    weights: str | Path | None = None,
    accept_license: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    if kwargs.get("features_only"):
        kwargs["num_classes"] = 0
        if cls.VARIANTS[name].takes("dropout"):  # the core's default for feature maps
            kwargs.setdefault("dropout", 0.0)
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    wrapper = kwargs.pop("feature_cls", "list")
    model = build_model_with_cfg(
        partial(cls, name),
        name,
        pretrained,
        pretrained_filter_fn=_fitted,
        # All features unless asked.
        feature_cfg=dict(feature_cls=partial(_extract_features, wrapper), out_indices=None),
        **kwargs,
    )
    if weights is not None:
        load_weights(model, weights, accept_license=accept_license)
    return model.to(device=device, dtype=dtype)


def _default_cfg(variant: Variant) -> dict[str, Any]:
    small = variant.preprocessing == CIFAR_RGB
    return dict(
        input_size=(3, 32, 32) if small else (3, 224, 224),
        pool_size=(8, 8) if small else (7, 7),
        crop_pct=1.0 if small else 0.875,
        interpolation="bilinear",
        mean=tuple(round(value / 255, 6) for value in variant.preprocessing.mean),
        std=tuple(round(value / 255, 6) for value in variant.preprocessing.std),
        num_classes=1000,
        first_conv=variant.first_conv,
        classifier=variant.classifier,
        license="apache-2.0",
        paper_name=variant.network.PAPER,
    )


def _register(name: str, cls: type[TimmInterface]) -> None:
    """Make ``name`` an entry function of this module and register it."""

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(cls, name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = (
        f"The model ``{name}``; arguments: see :class:`TimmInterface`, and ``weights`` and "
        "``accept_license`` as in :func:`gram_backbones.create_model`."
    )
    globals()[name] = entry
    with warnings.catch_warnings():
        if timm.models.is_model_in_modules(name, (__name__.rpartition(".")[2],)):  # a reload
            warnings.filterwarnings("ignore", message=f"Overwriting {name} in registry")
        register_model(entry)


default_cfgs: dict[str, Any] = {}  # register_model reads it by this name


def register_family(cls: type[TimmInterface]) -> None:
    """Register every variant of a family's timm class, see :class:`TimmInterface`, with timm."""
    cfgs = {name: _default_cfg(variant) for name, variant in cls.VARIANTS.items()}
    default_cfgs.update(generate_default_cfgs(cfgs))
    for name in cls.VARIANTS:
        _register(name, cls)


for _class in (TimmAOGNet, TimmDGNet):
    register_family(_class)
