"""The page of a run: what it shows, and how it looks in a browser."""

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("pycocotools", reason="pycocotools is not installed")
pytest.importorskip("supervision", reason="supervision is not installed")

from gram_backbones import cli
from gram_backbones.report.charts import Line, line_chart
from gram_backbones.report.page import render_report
from gram_backbones.report.runs import read_run
from tests.report.made_runs import make_d2_run, make_data, make_mmdet_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SECTIONS = ("run", "curves", "ap", "precision", "confusion", "images", "config", "warnings")


class Page(HTMLParser):
    """The texts of every section, the addresses that the page refers to, and its open elements."""

    def __init__(self, html):
        super().__init__()
        self.sections, self.addresses, self.charts, self._at = {}, [], [], "head"
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "h2":
            self._at = attrs["id"]
        if tag == "svg":
            self.charts.append(attrs["aria-label"])
        if tag in ("td", "th"):
            self.handle_data(" ")
        self.addresses += [v for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
        assert tag not in ("script", "link", "iframe")

    def handle_data(self, data):
        text = self.sections.get(self._at, "") + data
        self.sections[self._at] = re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a finished run, of one with another learning rate, and of one that goes on."""
    root = tmp_path_factory.mktemp("runs")
    data = make_data(root / "data")
    first = make_d2_run(root / "first", *data)
    return first, make_d2_run(root / "second", *data, lr="0.08"), make_mmdet_run(root / "mm", *data)


@pytest.fixture(scope="module")
def html(runs):
    return render_report([read_run(runs[0])])


@pytest.fixture(scope="module")
def html_of_two(runs):
    return render_report([read_run(folder) for folder in runs[:2]])


def test_a_long_legend_is_below_the_chart_and_iterations_are_whole_numbers():
    def chart(count):
        lines = [Line([(0, 1.0), (2, 2.0)], f"class {i}") for i in range(count)]
        return line_chart("precision", lines, x_label="iteration")

    few, many = (
        float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', chart(count))[1]) for count in (4, 8)
    )
    assert many > few + 30
    assert ">1</text>" in chart(1) and ">0.5</text>" not in chart(1)


def test_a_run(html):
    page = Page(html)
    assert tuple(page.sections)[1:] == SECTIONS
    assert "60 of 60 iterations, finished" in page.sections["run"]
    # printf weights | sha256sum
    assert "SHA-256 9a129038d9a00aed" in page.sections["run"]
    assert "torch 2.14.1" in page.sections["run"] and "random weights" in page.sections["run"]
    assert page.charts[:5] == [
        "total loss",
        "loss cls",
        "learning rate",
        "box AP in percent",
        "mask AP in percent",
    ]
    assert "class objects box mask box 6 83.2 83.2 disc 6 83.2" in page.sections["ap"]
    assert "box star 1 16.7" in page.sections["confusion"]
    threshold = re.search(r"the highest F1, ([\d.]+)\.", page.sections["confusion"])[1]
    assert threshold == "0.882"  # as in the pictures' titles
    assert "000001.png: F1 0.00; 0 right, 2 false, 3 missed" in page.sections["images"]
    assert "SOLVER.BASE_LR 0.02 0.04" in page.sections["config"]
    assert "3 annotations <look> odd" in page.sections["warnings"]


def test_the_page_needs_no_other_file(html):
    addresses = Page(html).addresses
    assert sum(address.startswith("data:image/jpeg;base64,") for address in addresses) == 12
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.findall(r"""(?:url\(|@import)\s*["']?(?!#)""", html)
    assert len(html) < 3e6


def test_the_report_of_a_long_run_is_small(tmp_path):
    rng = np.random.default_rng(0)
    with (tmp_path / "metrics.json").open("w") as file:
        for i, value in enumerate(rng.random(20_000).round(4).tolist()):
            file.write(f'{{"iteration": {i}, "total_loss": {value}, "lr": 0.1}}\n')
    html = render_report([read_run(tmp_path)])
    assert "20000 iterations" in html and len(html) < 150_000


@pytest.mark.slow
def test_two_runs(html_of_two):
    page = Page(html_of_two)
    assert "A first and B second" in page.sections["head"]
    assert "A box A mask B box B mask" in page.sections["ap"]
    assert "SEED -1 0 0 SOLVER.BASE_LR 0.02 0.04 0.08" in page.sections["config"]
    assert page.charts.count("total loss") == 1  # both runs in one


def test_a_run_of_mmdetection_that_goes_on(runs):
    page = Page(render_report([read_run(runs[2])]))
    assert "10 of 20 iterations, still going on, or stopped" in page.sections["run"]
    assert "The log has no warnings" in page.sections["warnings"]
    assert "F1 1.00; 3 right" in page.sections["images"]


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("SEED: 0\n")
    page = Page(render_report([read_run(tmp_path)]))
    assert tuple(page.sections)[1:] == SECTIONS and not page.charts
    assert "No iterations are logged yet." in page.sections["curves"]
    for section in ("ap", "precision", "confusion", "images"):
        assert "No predictions are saved." in page.sections[section]
    assert "unknown, as the run has no run.json" in page.sections["config"]


def test_data_that_are_not_there(runs, tmp_path):
    folder = shutil.copytree(runs[0], tmp_path / "moved")
    (folder / "metrics.json").unlink()
    text = (folder / "run.json").read_text().replace("images", "gone")
    (folder / "run.json").write_text(text)
    assert "cannot read picture" in Page(render_report([read_run(folder)])).sections["images"]
    (folder / "run.json").write_text(text.replace("val.json", "gone.json"))
    section = Page(render_report([read_run(folder)])).sections["ap"]
    assert "gone.json are not there; give them by --data." in section


def test_the_command(runs, tmp_path, capsys):
    place = f"made={runs[0].parent}/data/val.json:{runs[0].parent}/data/images"
    page = tmp_path / "page.html"
    cli.main(["report", str(runs[0]), "--data", place, "--output", str(page)])
    assert "F1 0.00" in page.read_text() and page.as_uri() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone does not exist; give the folder of a run"),
        (["data"], "data is not the folder of a run: it has neither"),
        (["first", "second", "mm"], "3 runs are given; a report is of one or two"),
        (["first", "--data", "made=gone.json:images"], "data set made: gone.json does not exist"),
        (["first", "--output", "gone/page.html"], "is 'gone/page.html'; give a file in a folder"),
        (["first", "--output", "data"], "--output is 'data'; give a file in a folder that exists"),
    ],
)
def test_wrong_arguments(runs, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(runs[0].parent)
    monkeypatch.setattr("gram_backbones.report.page.evaluate", None)  # nothing is rendered before
    with pytest.raises(SystemExit) as error:
        cli.main(["report", *arguments])
    assert error.value.code == 2 and message in capsys.readouterr().err
    assert not (runs[0].parent / "first/report.html").exists()


# Sizes in a frame: Chromium's own window is at least 500 pixels wide.
FRAME = """<!DOCTYPE html>
<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{html}">
</iframe><script>addEventListener("load", () => {{
    const page = document.querySelector("iframe").contentWindow, {{document: shown}} = page
    const say = (name, value) => document.documentElement.dataset[name] = value
    const widths = (path) => [...shown.querySelectorAll(path)].map(
        (element) => Math.round(element.getBoundingClientRect().width))
    say("window", page.innerWidth)
    say("page", shown.documentElement.scrollWidth)
    say("charts", widths(".chart"))
    say("pictures", [...shown.images].map((image) => image.naturalWidth))
    say("shown", widths("img"))
    say("cut", [...shown.querySelectorAll(".scroll")].filter(
        (element) => element.scrollWidth > element.clientWidth).length)
    say("columns", page.getComputedStyle(shown.querySelector(".grid")).gridTemplateColumns)
}})</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("number", [1, 2])
def test_in_a_browser(html, html_of_two, tmp_path, width, number):
    """Nothing is wider than the window; charts and pictures are drawn, and text can be read."""
    file = tmp_path / "page.html"
    shown = escape(html if number == 1 else html_of_two).replace("disc", "refrigerator")
    file.write_text(FRAME.format(width=width, html=shown))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', done.stdout[:2000]))
    numbers = {k: [float(v) for v in re.findall(r"[\d.]+", found[k])] for k in found}
    assert numbers["window"] == [width] and numbers["page"][0] <= width
    assert len(numbers["columns"]) == (1 if width == 390 else 3)
    # 10 points of 360 are 9 pixels or more where a chart is 320 or wider.
    assert len(numbers["charts"]) == 5 + 4 * number and min(numbers["charts"]) >= 320
    assert len(numbers["pictures"]) == 12 * number and min(numbers["pictures"]) >= 400
    assert min(numbers["shown"]) >= 280 / number
    assert width == 390 or numbers["cut"] == [0]
