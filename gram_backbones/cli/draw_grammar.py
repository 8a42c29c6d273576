"""Draw the And-Or graph of an AOGNet block, as in Figures 1 and 4 of the paper.

{prog} aognet_12m --stage 3 --output grammar.svg
{prog} --words 4 --pruning keep_first --lateral

Stages count from 1, as in the paper: stage 1 gives the feature res2. Numbers in nodes are their
ids, which gram-backbones explain takes. The picture is .svg or .png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import setup

MOST_WORDS = 8  # drawings of more are not readable
PRUNINGS = ("full", "keep_first", "keep_last")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = setup.parser_with_examples(__doc__, prog)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="name of an AOGNet")
    parser.add_argument("--stage", type=int, help="of the model, from 1 (default: 1)")
    help = f"in place of a model: the number of words, 1 to {MOST_WORDS}"
    parser.add_argument("--words", type=int, metavar="N", help=help)
    parser.add_argument("--pruning", choices=PRUNINGS, help="with --words (default: full)")
    parser.add_argument("--lateral", action="store_true", help="with --words: lateral connections")
    help = "leave out what pruning removes, which is drawn dashed"
    parser.add_argument("--hide-pruned", action="store_true", help=help)
    help = "FILE.svg or FILE.png (default: grammar.svg)"
    parser.add_argument("--output", metavar="FILE", default="grammar.svg", help=help)
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Draw the graph, and print how many nodes it has."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    if (args.model is None) == (args.words is None):
        parser.error("give either a MODEL or --words")
    if args.model is None and args.stage is not None:
        parser.error("--stage needs a MODEL; --words draws one block")
    if args.model is not None and (args.pruning or args.lateral):
        parser.error("--pruning and --lateral need --words; a MODEL has its own")
    try:
        from ..analysis.drawing import check_output, draw_grammar, save_figure
        from ..grammar import NodeType, build_graph

        check_output(args.output)
        if args.model is not None:
            from ..analysis.grammars import find_grammar  # torch comes with the models

            title, graph = find_grammar(args.model, 1 if args.stage is None else args.stage)
        else:
            pruning = None if args.pruning in (None, "full") else args.pruning
            title, graph = "A block", build_graph(args.words, pruning=pruning, lateral=args.lateral)
        if graph.n_words > MOST_WORDS:
            parser.error(f"the grammar has {graph.n_words} words; at most {MOST_WORDS} are drawn")
        title = f"{title}: {graph.n_words} words, {graph.pruning or 'full'}"
        figure = draw_grammar(graph, title=title, show_pruned=not args.hide_pruned)
        save_figure(figure, args.output)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    counts = ", ".join(f"{graph.count(type)} {type.value}" for type in NodeType)
    print(f"{title}: {counts}; drawn in {args.output}")
