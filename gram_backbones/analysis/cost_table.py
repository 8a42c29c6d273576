"""The rows of the table that ``cost`` prints: networks and detectors, whole and by parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from ..registry import feature_info, list_models
from ..staged import StagedBackbone
from ..weights.records import list_weights
from .cost import PARTS, Cost, Parts, build_on_meta, measure
from .published import PAPER_BACKBONES, PAPER_SIZE, PAPERS, Published, paper_of_detector

HEADS = ("model", "parameters", "conv GFLOPs", "paper", "GFLOPs", "activations, M", "training, MB")
IMAGENET_SIZE = (224, 224)  # of what torchvision publishes, and of ImageNet's models here
_PADDED = 32  # pixels: the frameworks pad images to multiples


class Row(NamedTuple):
    """A network, or a part of one.

    Attributes:
        name: as printed.
        cost: what was counted.
        size: height and width of the image in pixels.
        paper: figures to hold the counts against.
        is_counted: False if all but the parameters depend on more than an image's size.
    """

    name: str
    cost: Cost
    size: tuple[int, int]
    paper: Published | None = None
    is_counted: bool = True

    def cells(self, batch: int = 1) -> list[str]:
        """The texts under `HEADS`, with the memory of a training step of ``batch`` images.

        Examples:
            >>> Row("mine", Cost(1_000, 1_000, 2_000_000_000), (224, 224)).cells()[:4]
            ['mine', '1,000', '2.000', '–']
        """
        cost = self.cost
        cells = [self.name, f"{cost.parameters:,}"]
        if not self.is_counted:
            return [*cells, *["–"] * (len(HEADS) - 2)]
        papers = []
        for key, unit, letter in (("parameters", 1e6, "M"), ("conv_flops", 1e9, "G")):
            if figure := getattr(self.paper, key, None):
                off = round(100 * (getattr(cost, key) / figure - 1), 1) + 0.0  # no minus before 0.0
                papers.append(f"{figure / unit:.5g} {letter} ({off:+} %)".replace("-", "−"))
        flops = [short_number(count / 1e9) for count in (cost.conv_flops, cost.flops)]
        rest = [short_number(cost.activations / 1e6), f"{cost.training_bytes(batch) / 1e6:.1f}"]
        return [*cells, flops[0], ", ".join(papers) or "–", flops[1], *rest]


def short_number(value: float) -> str:
    """Three digits behind the point, or two that say something.

    Examples:
        >>> short_number(2.35789), short_number(0.00012345)
        ('2.358', '0.00012')
    """
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def default_size(name: str) -> tuple[int, int]:
    """Height and width of the images that a model is counted with.

    Examples:
        >>> default_size("dgnet_cifar_r20"), default_size("dgnet_r50")
        ((32, 32), (224, 224))
    """
    return (32, 32) if "cifar" in name else IMAGENET_SIZE


def model_rows(
    name: str, size: tuple[int, int] | None = None, by: str | None = None
) -> Iterator[Row]:
    """A model, then its parts.

    Args:
        name: of the model.
        size: height and width of the image in pixels; by default `default_size`.
        by: ``"stage"`` or ``"node"``: which parts have rows of their own.

    Raises:
        ValueError: there is no such model, or it cannot take images of this size.

    Examples:
        >>> [row.name for row in model_rows("dgnet_r18", by="stage")][:3]
        ['`dgnet_r18`', '· stem', '· res2']
    """
    size = size or default_size(name)
    model = build_on_meta(name)
    whole, costs = measure(model, size, PARTS[by](model) if by else {})
    papers = {default_size(name): PAPERS, PAPER_SIZE: PAPER_BACKBONES}.get(size, {})
    yield Row(f"`{name}`", whole, size, papers.get(name))
    yield from (Row(f"· {part}", cost, size) for part, cost in costs.items())


def detector_rows(
    config: str,
    detector: nn.Module,
    trunk: nn.Module,
    parts: Parts,
    size: tuple[int, int] | None = None,
    by: str | None = None,
) -> Iterator[Row]:
    """A detector, its parts and those of its backbone; RoI heads with their parameters alone.

    Args:
        config: name of the config; a folder in front and an ending do not matter.
        detector, trunk, parts: what ``build_trunk`` of the config's framework returns.
        size: as in :func:`model_rows`, padded to a multiple of 32; by default that of DG-Net's
            Table 2.
        by: as in :func:`model_rows`, of the backbone.

    Raises:
        ValueError: the detector cannot take images of this size.
    """
    height, width = size or PAPER_SIZE
    padded = (-(-height // _PADDED) * _PADDED, -(-width // _PADDED) * _PADDED)
    whole, costs = measure(trunk, padded, parts)
    numbers = [(p.numel(), p.requires_grad) for p in detector.parameters()]
    parameters = sum(number for number, _ in numbers)
    trainable = sum(number for number, learns in numbers if learns)
    all_of_it = replace(whole, parameters=parameters, trainable=trainable)
    yield Row(f"`{config}`", all_of_it, padded, paper_of_detector(config))
    (backbone,) = parts["backbone"]
    for part, cost in costs.items():
        if part != "backbone" or not isinstance(backbone, StagedBackbone):
            yield Row(f"· {part}", cost, padded)
            continue
        names = [n for n, row in backbone.VARIANTS.items() if row == backbone.variant]
        papers = {} if size else PAPER_BACKBONES
        yield Row(f"· {part}", cost, padded, next(map(papers.get, names), None))
        if by:
            _, inner = measure(backbone, padded, PARTS[by](backbone))
            yield from (Row(f"·· {path}", cost, padded) for path, cost in inner.items())
    if rest := parameters - whole.parameters:
        yield Row("· RoI heads and other parts", Cost(rest), padded, is_counted=False)


def chart_families(rows: Iterable[Row]) -> dict[str, dict[str, Published]]:
    """Whole models as :func:`~gram_backbones.analysis.published.draw_chart` takes them.

    Examples:
        >>> families = chart_families([Row("`aognet_4m`", Cost(), (224, 224))])
        >>> families["AOGNet"]["4m"].top1
        73.8
    """
    families: dict[str, dict[str, Published]] = {}
    for row in rows:
        name = row.name.strip("`")
        family, _, short = name.partition("_")
        family = {"aognet": "AOGNet", "dgnet": "DG-Net"}.get(family, family)
        family += ", as released" if name.endswith("_released") else ""
        top1 = getattr(PAPERS.get(name), "top1", None)
        figures = Published(row.cost.parameters, row.cost.conv_flops, top1)
        families.setdefault(family, {})[short.removesuffix("_released")] = figures
    return families


def feature_table(models: Sequence[str] = ()) -> str:
    """Channels and strides of models, and their weights; each family's models with weights first.

    Args:
        models: names; none for all.

    Returns:
        A table in Markdown.

    Examples:
        >>> print(feature_table(["dgnet_r18"]).splitlines()[-1][:39])
        | `dgnet_r18` | 64 / 4 | 64 / 4 | 128 /
    """
    rows = []
    for name in models or list_models():
        tags = [f"`{full.removeprefix(f'{name}.')}`" for full in list_weights(f"{name}.*")]
        infos = [f"{info.channels} / {info.stride}" for info in feature_info(name).values()]
        infos += ["–"] * (5 - len(infos))
        rows.append([f"`{name}`", *infos, ", ".join(tags) or "–"])
    rows.sort(key=lambda row: (row[0].partition("_")[0], row[-1] == "–"))
    heads = ["model", "stem", "res2", "res3", "res4", "res5", "weights"]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
