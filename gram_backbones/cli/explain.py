"""Show where a trained AOGNet looks: what every node of a block adds, for one image.

{prog} street.jpg --model aognet_12m_released --weights best.pth
{prog} boat.png --model aognet_cifar_s_pruned_lateral --weights last.pth --stage 2 --nodes 0 2 5
{prog} boat.png --model aognet_cifar_s_pruned --weights last.pth --class ship --names classes.txt

The picture has the image, the block's grammar with a number in every node, the strongest parse (at
every OR-node the child that adds most), and Grad-CAM maps of nodes. The numbers of all blocks of
the stage are in a JSON file of the picture's name. The network sees the image's central square.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import setup

if TYPE_CHECKING:
    from ..analysis.contributions import Explanation

MEASURES = ("to_root", "to_class", "rms")  # as in gram_backbones.analysis.explaining


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("image", metavar="IMAGE", help="a picture file")
    parser.add_argument("--model", required=True, help="name of an AOGNet")
    parser.add_argument("--weights", required=True, metavar="FILE", help="of a trained classifier")
    parser.add_argument("--stage", type=int, help="from 1 (default: the last one)")
    parser.add_argument("--block", type=int, help="of the stage, from 1 (default: the last one)")
    help = "index, or name with --names (default: the most probable one)"
    parser.add_argument("--class", dest="target", metavar="CLASS", help=help)
    parser.add_argument("--names", metavar="FILE", help="names of the classes, one a line")
    help = "ids of nodes for Grad-CAM maps (default: the root and the strongest parse)"
    parser.add_argument("--nodes", type=int, nargs="+", metavar="ID", help=help)
    help = "the number in a node: share of the root's output, part of the class's logit, or size"
    parser.add_argument("--by", choices=MEASURES, default="to_root", help=help)
    help = "side in pixels to which the central square is resized (default: 32 for CIFAR, or 224)"
    parser.add_argument("--size", type=int, help=help)
    help = "FILE.png or FILE.svg (default: explanation.png)"
    parser.add_argument("--output", metavar="FILE", default="explanation.png", help=help)
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Explain one prediction, and print it with the strongest parse."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    setup.start()
    try:
        lines = explain(args)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print("\n".join(lines))


def explain(args: argparse.Namespace) -> list[str]:
    """Write the picture and the numbers; the lines to print."""
    from ..analysis import explaining
    from ..analysis.contributions import measure_contributions
    from ..analysis.drawing import check_output, save_figure
    from ..analysis.grammars import find_aognet
    from ..atomic import replacing

    output = check_output(args.output)
    model = explaining.load_aognet_classifier(args.model, args.weights)
    classes = read_names(args.names, model.fc.out_features)
    variant = find_aognet(args.model)
    stage = len(model.stage_names) if args.stage is None else args.stage
    size = (32 if variant.stem == "cifar" else 224) if args.size is None else args.size
    if size < model.size_divisibility:
        raise ValueError(f"size is {size}; {args.model} needs {model.size_divisibility} or more")
    picture = explaining.read_square(args.image, size)
    image = explaining.as_input(picture, variant.preprocessing)
    found = measure_contributions(model, image, stage, find_class(args.target, classes))
    number = len(found.blocks) if args.block is None else args.block
    if not 1 <= number <= len(found.blocks):
        raise ValueError(f"block is {number}; stage {stage} has blocks 1 to {len(found.blocks)}")
    block = found.blocks[number - 1]
    tree = block.strongest_parse("to_class" if args.by == "to_class" else "to_root")
    nodes = args.nodes or [0, *(part.node.id for part in tree.walk())][: explaining.MOST_MAPS]
    maps = explaining.grad_cam(model, image, stage, number, nodes, found.target)
    best = describe_classes(found, classes)
    title = f"{args.model}, stage {stage}, block {number}"
    caption = "\n".join([f"explained: {classes[found.target]}", *best])
    figure = explaining.draw_explanation(
        picture, caption, block, maps, measure=args.by, title=title
    )
    with replacing(output.with_suffix(".json")) as part:
        part.write_text(json.dumps(as_record(args, found, classes, stage), indent=1))
    save_figure(figure, output)
    parse = ", ".join(explaining.describe_node(block.graph, p.node.id) for p in tree.walk())
    files = f"{output} and {output.with_suffix('.json')}"
    return [*best, f"strongest parse of {title}: {parse}", f"drawn in {files}"]


def read_names(file: str | None, count: int) -> list[str]:
    """Names of classes: those in a file, or their indices.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not have one line for every class.
    """
    if file is None:
        return [str(index) for index in range(count)]
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file in UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise ValueError(f"{file} has {len(names)} names; the model has {count} classes")
    return names


def find_class(text: str | None, classes: list[str]) -> int | None:
    """The index of a class by name or index; None for None.

    Raises:
        ValueError: there is no such class.
    """
    from ..suggestions import did_you_mean

    if text is None or text in classes:
        return None if text is None else classes.index(text)
    if text.isdigit() and int(text) < len(classes):
        return int(text)
    known = [] if classes[0] == "0" else classes
    allowed = f"0 to {len(classes) - 1}" + (f" and {known}" if known else "")
    meant = did_you_mean(text, known)
    raise ValueError(f"there is no class {text!r}{meant}; allowed are {allowed}")


def describe_classes(found: Explanation, classes: list[str]) -> list[str]:
    """The most probable classes, a line each."""
    order = sorted(range(len(classes)), key=lambda i: -found.probabilities[i])
    return [f"{classes[i]}: {100 * found.probabilities[i]:.1f} %" for i in order[:3]]


def as_record(
    args: argparse.Namespace, found: Explanation, classes: list[str], stage: int
) -> dict[str, Any]:
    """All numbers as plain values."""
    return {
        "image": args.image,
        "model": args.model,
        "weights": args.weights,
        "stage": stage,
        "class": classes[found.target],
        "logit": found.logit,
        "probabilities": dict(zip(classes, found.probabilities)),
        "blocks": [block.as_dict() for block in found.blocks],
    }
