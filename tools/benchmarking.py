"""What tools/benchmark.py measures and draws."""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.profiler import profile
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from gram_backbones import AOGNet, create_model
from gram_backbones.flops import count_conv_flops
from gram_backbones.fused import deploy, unfused
from gram_backbones.registry import find_variant

RESNETS = ("resnet50", "resnet101")
# (stage, node) pairs of DG-ResNet-50 that get no input; stage 2 is res4.
REMOVALS = {
    0: [],
    2: [(2, 5), (2, 6)],
    4: [(0, 3), (1, 4), (2, 6), (3, 3)],
    8: [(0, 2), (0, 3), (1, 3), (1, 4), (2, 5), (2, 6), (3, 2), (3, 3)],
}


def build(name: str, norm: str = "BN", **options) -> nn.Module:
    """A network of feature maps, ours or torchvision's."""
    torch.manual_seed(0)
    if name not in RESNETS:
        return create_model(name, features_only=True, norm=norm, **options)
    layer = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d}[norm]
    resnet = torchvision.models.get_model(name, norm_layer=layer)
    return IntermediateLayerGetter(resnet, {f"layer{i}": f"res{i + 1}" for i in (1, 2, 3, 4)})


def folded(resnet: nn.Module) -> nn.Module:
    """A copy of torchvision's ResNet with its norms folded into its convolutions."""
    resnet = copy.deepcopy(resnet).eval()
    for parent in list(resnet.modules()):
        children = list(parent.named_children())
        convs = {n: m for n, m in children if isinstance(m, nn.Conv2d)}
        norms = {n: m for n, m in children if isinstance(m, nn.BatchNorm2d)}
        for (conv, before), (norm, after) in zip(convs.items(), norms.items()):
            setattr(parent, conv, fuse_conv_bn_eval(before, after))
            setattr(parent, norm, nn.Identity())
    return resnet


def contestant(name: str, mode: str, image: Tensor) -> tuple[Callable[[], object], nn.Module]:
    """What to time, and the network."""
    model = build(name, "FrozenBN" if mode == "frozen" else "BN")
    model.to(image.device, image.dtype).eval()
    if mode in ("deployed", "compiled"):
        model = folded(model) if name in RESNETS else deploy(model)
    if mode in ("channels_last", "deployed", "compiled"):
        model, image = (t.to(memory_format=torch.channels_last) for t in (model, image))
    if mode == "compiled":
        torch._inductor.config.freezing = True  # weights are constants, and packed
        model = torch.compile(model)
    plain = unfused if mode in ("plain", "channels_last") else nullcontext

    def run() -> None:
        with plain():
            model(image)
        if image.is_cuda:
            torch.cuda.synchronize()

    return run, model


def training_step(name: str, mode: str, image: Tensor) -> tuple[Callable[[], object], nn.Module]:
    """Forward and backward pass; ``frozen_with_cp`` recomputes activations."""
    options = {"with_cp": True} if mode == "frozen_with_cp" else {}
    model = build(name, "BN" if mode == "plain" else "FrozenBN", **options).to(image.device)
    if mode == "plain":  # statistics are fixed, as in the published detectors
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    plain = unfused if mode == "plain" else nullcontext

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with plain():
            sum(feature.mean() for feature in model(image).values()).backward()
        if image.is_cuda:
            torch.cuda.synchronize()

    return run, model


def alternate(runs: dict[object, Callable[[], object]], rounds: int) -> dict[object, list[float]]:
    """Seconds of every contestant, ``rounds`` times in turn, after three of warm-up."""
    seconds: dict[object, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 3):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return seconds


def count_operators(run: Callable[[], object]) -> int:
    """Operators that the network itself calls, as the profiler sees them."""
    with profile() as events:
        run()
    ours = ("aten::", "mkldnn::", "cudnn")
    return sum(e.cpu_parent is None and e.name.startswith(ours) for e in events.events())


def peak_memory(run: Callable[[], object], model: nn.Module, image: Tensor) -> float:
    """Bytes at the peak of a step, parameters included."""
    if image.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    model.zero_grad(set_to_none=True)
    with profile(profile_memory=True) as events:
        run()
    moves = [e for e in events.profiler.kineto_results.events() if e.name() == "[memory]"]
    moves.sort(key=lambda event: event.start_ns())
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), image))
    return held + max(accumulate(event.nbytes() for event in moves))


def compare(args: argparse.Namespace, image: Tensor) -> list[dict]:
    """A row for every model and mode."""
    modes = ("plain", "frozen", "frozen_with_cp") if args.train else args.modes
    start = training_step if args.train else contestant
    pairs = {(name, mode): start(name, mode, image) for name in args.models for mode in modes
             if not (name in RESNETS and mode == "frozen_with_cp")}  # fmt: skip
    with nullcontext() if args.train else torch.no_grad():
        seconds = alternate({key: run for key, (run, _) in pairs.items()}, args.rounds)
    rows = []
    for (name, mode), values in seconds.items():
        run, model = pairs[name, mode]
        first, values = values[0], values[3:]
        ratios = [a / b for a, b in zip(values, seconds[name, modes[0]][3:])]
        values = sorted(values)
        row = dict(model=name, mode=mode, ms=statistics.median(values) * 1e3)
        quarter = len(values) // 4
        row["ms from"], row["ms to"] = values[quarter] * 1e3, values[-1 - quarter] * 1e3
        flops = count_conv_flops(build(name), tuple(args.size)) * args.batch / 1e9
        row["ms/GFLOP"] = row["ms"] / flops
        row[f"of {modes[0]}"] = statistics.median(ratios)  # round by round: the machine drifts
        if args.train:
            row["peak MB"] = peak_memory(run, model, image) / 1e6
        elif mode == "compiled":
            row["first call, s"] = first
        else:
            with torch.no_grad():
                row["operators"] = count_operators(run)
        rows.append(row)
    return rows


def compare_skipping(args: argparse.Namespace, image: Tensor) -> list[dict]:
    """DG-ResNet-50 with blocks that get no input, against torchvision's ResNet-50."""
    rows = []
    base = torchvision.models.resnet50().eval()
    whole = count_conv_flops(base, tuple(args.size))
    for count, removed in REMOVALS.items():
        model = create_model("dgnet_r50", weights=None).eval()
        model.load_state_dict(base.state_dict(), strict=False)
        with torch.no_grad():
            for stage, node in removed:
                model.graphs[str(stage)].thresholds[node - 1] = 2.0
        share = 1 - count_conv_flops(model, tuple(args.size)) / whole
        modes = {"plain": (base, model, unfused)}
        if args.deployed:
            last = folded(base).to(memory_format=torch.channels_last)
            modes = {"deployed": (last, deploy(model), nullcontext)}
        for mode, (first, second, context) in modes.items():
            x = image.to(memory_format=torch.channels_last) if mode == "deployed" else image
            with torch.inference_mode(), context():
                runs = {1: partial(first, x), 2: partial(second, x)}
                seconds = {k: v[3:] for k, v in alternate(runs, args.rounds).items()}
            ratios = sorted(b / a for a, b in zip(seconds[1], seconds[2]))
            quarter = len(ratios) // 4
            rows.append({
                "mode": mode, "blocks removed": count, "FLOPs removed": share,
                "ResNet-50, ms": statistics.median(seconds[1]) * 1e3,
                "DG-Net, ms": statistics.median(seconds[2]) * 1e3,
                "ratio": statistics.median(ratios), "from": ratios[quarter],
                "to": ratios[-1 - quarter], "bound": 1.15 - 0.8 * share,
            })  # fmt: skip
    return rows


def compare_growth(args: argparse.Namespace) -> list[dict]:
    """Time, memory and operators of one AOGNet against image size, words and blocks.

    The last row of every series has the exponent p that fits figure = c · x^p.
    """
    row = find_variant("aognet_12m_released")
    series = {
        "side": [(row, side) for side in (320, 512, 800, 1088, 1333)],
        "words": [(replace(row, words=(n,) * 4, channels=(60, 120, 240, 480, 840)), 512)
                  for n in (2, 3, 4, 5, 6)],
        "blocks": [(replace(row, blocks=(n,) * 4), 512) for n in (1, 2, 3, 4)],
    }  # fmt: skip
    rows = []
    for name, cases in series.items():
        part = []
        for variant, side in cases:
            image = torch.randn(1, 3, side, side)
            model = AOGNet(variant, norm="FrozenBN").eval()
            with torch.no_grad():
                seconds = alternate({0: lambda: model(image)}, args.rounds)[0][3:]  # noqa: B023
                operators = count_operators(lambda: model(image))  # noqa: B023
            step = peak_memory(lambda: sum(f.mean() for f in model(image).values()).backward(),  # noqa: B023
                               model, image)  # fmt: skip
            x = {"side": side, "words": variant.words[0], "blocks": variant.blocks[0]}[name]
            part.append({"series": name, "x": x, "ms": statistics.median(seconds) * 1e3,
                         "operators": operators, "step MB": step / 1e6})  # fmt: skip
        fitted = {}
        for key in ("ms", "operators", "step MB"):
            x, y = np.log([(point["x"], point[key]) for point in part]).T
            fitted[key] = np.polyfit(x, y, 1)[0]
        rows += [*part, {"series": name, "x": "exponent", **fitted}]
    return rows


def draw(rows: list[dict], file: Path) -> None:
    """A picture of the rows of any of the comparisons."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if "series" in rows[0]:
        draw_growth(rows, pyplot)
    elif "bound" in rows[0]:
        draw_skipping(rows, pyplot)
    else:
        draw_bars(rows, pyplot)
    for axes in pyplot.gcf().axes:
        axes.spines[["top", "right"]].set_visible(False)
    pyplot.savefig(file, dpi=120)


def draw_bars(rows: list[dict], pyplot) -> None:
    """A bar for every model and mode."""
    _, axes = pyplot.subplots(figsize=(8, 0.4 * len(rows) + 1), layout="constrained")
    axes.barh([f"{row['model']} {row['mode']}" for row in rows], [row["ms"] for row in rows])
    axes.bar_label(axes.containers[0], fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("median, ms")


def draw_skipping(rows: list[dict], pyplot) -> None:
    """Time over ResNet-50's against the FLOPs removed, with quartiles and the bound."""
    _, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    removed = [100 * row["FLOPs removed"] for row in rows]
    ratios = [row["ratio"] for row in rows]
    errors = [
        [row["ratio"] - row["from"] for row in rows],
        [row["to"] - row["ratio"] for row in rows],
    ]
    axes.errorbar(removed, ratios, errors, marker="o", capsize=3, label="median and quartiles")
    axes.plot(removed, [row["bound"] for row in rows], "--", color="gray", label="bound")
    axes.set(xlabel="FLOPs removed, %", ylabel="time over ResNet-50's")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def draw_growth(rows: list[dict], pyplot) -> None:
    """Every figure over that of the smallest case against size, words and blocks, on log axes."""
    series = dict.fromkeys(row["series"] for row in rows)
    figure, panels = pyplot.subplots(1, len(series), figsize=(4 * len(series), 4), sharey=True,
                                     layout="constrained")  # fmt: skip
    names = {"side": "image side, pixels", "words": "words N", "blocks": "blocks of a stage"}
    for axes, name in zip(panels, series):
        *points, fitted = [row for row in rows if row["series"] == name]
        x = [point["x"] for point in points]
        for key, marker in (("ms", "o"), ("operators", "s"), ("step MB", "^")):
            y = [point[key] / points[0][key] for point in points]
            axes.loglog(x, y, marker=marker, label=f"{key}: p = {fitted[key]:.2f}")
        axes.set(xlabel=names[name])
        axes.set_xticks(x, map(str, x))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    ticks = (1, 2, 4, 8, 16)
    panels[0].set_yticks(ticks, map(str, ticks))
    panels[0].set_ylabel("over the smallest case")
