"""Drawings of grammars: what is drawn, that it can be read, and the command."""

import re
import sys

import pytest

from gram_backbones import cli
from gram_backbones.analysis.layout import lay_out
from gram_backbones.grammar import build_graph

drawing = pytest.importorskip("gram_backbones.analysis.drawing", exc_type=ImportError)


@pytest.mark.parametrize("pruning", (None, "keep_first", "keep_last"))
def test_every_node_and_edge_is_placed_once(pruning):
    graph, full = build_graph(4, pruning=pruning), build_graph(4)
    layout = lay_out(graph)
    kept = [place.node for place in layout.nodes if not place.pruned]
    assert kept == list(graph.nodes)
    assert len(layout.nodes) == len(full.nodes)  # figure 4: the pruned ones are dashed
    drawn = {(e.source.node.id, e.target.node.id, e.lateral) for e in layout.edges if not e.pruned}
    children = {(child, node.id, False) for node in graph.nodes for child in node.children}
    laterals = {(v.lateral, v.id, True) for v in graph.nodes if v.lateral is not None}
    assert drawn == children | laterals
    assert len(layout.edges) == sum(len(node.children) for node in full.nodes) + len(laterals)
    assert {box.span: box.paths_to_root for box in layout.boxes if box.paths_to_root} == {
        node.span: node.paths_to_root for node in graph.nodes
    }


@pytest.mark.parametrize("n_words", (1, 2, 4, 8))
def test_nodes_and_boxes_do_not_overlap_and_stay_inside(n_words):
    layout = lay_out(build_graph(n_words))
    places = [(place.x, place.y) for place in layout.nodes]
    for at, (x, y) in enumerate(places):
        others = places[:at]
        assert all((x - u) ** 2 + (y - v) ** 2 > (2 * drawing.RING) ** 2 for u, v in others)
    for at, box in enumerate(layout.boxes):
        assert 0 <= box.x and box.x + box.width <= layout.width
        for other in layout.boxes[:at]:
            apart_x = abs(box.x + box.width / 2 - other.x - other.width / 2)
            apart_y = abs(box.y - other.y)
            assert apart_x >= (box.width + other.width) / 2 or apart_y >= box.height
    levels = {place.node.length: place.y for place in layout.nodes}
    assert sorted(levels, key=levels.get) == sorted(levels)


def test_no_edge_of_four_words_passes_through_a_node():
    """It would look like an edge of that node."""
    for pruning in (None, "keep_first", "keep_last"):
        layout = lay_out(build_graph(4, pruning=pruning))
        for edge in layout.edges:
            a, b = edge.source, edge.target
            dx, dy = b.x - a.x, b.y - a.y
            cx, cy = (a.x + b.x) / 2 + edge.bend * dy, (a.y + b.y) / 2 - edge.bend * dx
            for t in (i / 50 for i in range(51)):
                x = (1 - t) ** 2 * a.x + 2 * t * (1 - t) * cx + t * t * b.x
                y = (1 - t) ** 2 * a.y + 2 * t * (1 - t) * cy + t * t * b.y
                for place in layout.nodes:
                    if place not in (a, b) and not place.pruned:
                        assert (x - place.x) ** 2 + (y - place.y) ** 2 > drawing.RADIUS**2


def test_all_text_is_on_a_light_ground_and_what_is_not_shows_on_both_pages():
    """WCAG's contrast: 4.5 for text, 3 for lines, on white and on the dark theme's page."""

    def luminance(colour):
        channels = drawing.matplotlib.colors.to_rgb(colour)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))

    def contrast(one, other):
        dark, light = sorted(map(luminance, (one, other)))
        return (light + 0.05) / (dark + 0.05)

    assert contrast(drawing.TEXT, drawing.BOX) > 4.5
    for page in ("white", "#1e2129"):
        for line in (drawing.SYNTACTIC, drawing.LATERAL, drawing.PRUNED):
            assert contrast(line, page) > 3, (line, page)
    for fill in drawing.COLOURS.values():
        assert contrast("white", fill) > 4.5


def test_the_command_draws_a_models_stage(tmp_path, capsys):
    file = tmp_path / "grammar.svg"
    cli.main(["draw-grammar", "aognet_4m", "--stage", "3", "--output", str(file)])
    said = capsys.readouterr().out
    assert said.startswith("aognet_4m, stage 3: 4 words, keep_first: 8 OR, 5 AND, 8 T")
    text = file.read_text()
    assert {f">{node}</text>" for node in range(21)} <= set(re.findall(r">\d+</text>", text))
    assert "words 2–3, n = 2" in text and ">lateral edge<" in text and ">pruned<" in text
    before = file.read_bytes()
    cli.main(["draw-grammar", "aognet_4m", "--stage", "3", "--output", str(file)])
    assert file.read_bytes() == before
    cli.main(["draw-grammar", "--words", "3", "--output", str(file.with_suffix(".png"))])
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert ">lateral edge<" not in draw_words(tmp_path) and "lateral" in draw_words(
        tmp_path, "--lateral"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"grammar.svg", "grammar.png", "w.svg"}


def draw_words(folder, *options):
    cli.main(["draw-grammar", "--words", "2", *options, "--output", str(folder / "w.svg")])
    return (folder / "w.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    (
        ([], "give either a MODEL or --words"),
        (["aognet_4m", "--words", "2"], "give either a MODEL or --words"),
        (["dgnet_r50"], "dgnet_r50 has no grammar; allowed are AOGNets: ['aognet_12m', "),
        (["aognet12m"], "did you mean 'aognet_12m'"),
        (["aognet_4m", "--stage", "0"], "stage is 0; aognet_4m has stages 1 to 4"),
        (["aognet_4m", "--lateral"], "--pruning and --lateral need --words"),
        (["--words", "2", "--stage", "1"], "--stage needs a MODEL"),
        (["--words", "0"], "n_words is 0; it must be an integer of at least 1"),
        (["--words", "9"], "the grammar has 9 words; at most 8 are drawn"),
        (["--words", "2", "--output", "x.gif"], "its suffix must be .png or .svg"),
        (["--words", "2", "--output", "gone/x.svg"], "there is no folder gone"),
    ),
)
def test_wrong_input_ends_in_a_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["draw-grammar", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "gram_backbones.analysis.drawing")
    with pytest.raises(SystemExit) as ended:
        cli.main(["draw-grammar", "--words", "2"])
    assert ended.value.code == 2
    assert "pip install gram-backbones[analysis]" in capsys.readouterr().err
