"""The report of one run, or of two side by side, as one HTML page without scripts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Dataset, PictureError
from ..weights.files import file_hash
from .charts import Line, line_chart
from .detections import KINDS, Evaluation, EvaluationError, ImageScore, evaluate
from .runs import Run

_IMAGES = 4  # best and worst ones
_CURVES = 8  # classes with a curve of their own
_MATRIX = 15  # classes in a confusion matrix
_PAIRS = 10  # most frequent confusions
_WARNINGS = 50
_LABELS = "AB"


@dataclass(frozen=True)
class Picture:
    """An image of the page: two ``data:`` addresses, or the reason why there are none."""

    file: str
    score: ImageScore
    sides: tuple[str, str] | None
    reason: str = ""


@dataclass
class Result:
    """Predictions of a run on a data set; ``reason`` says why there is no evaluation."""

    label: str
    dataset: str
    evaluation: Evaluation | None = None
    reason: str = ""
    best: list[Picture] = field(default_factory=list)
    worst: list[Picture] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The run's letter, if there are two, and the data set."""
        return f"{self.label}: {self.dataset}" if self.label else self.dataset


def render_report(runs: Sequence[Run], data: Dataset | None = None) -> str:
    """The page of one run, or of two to compare.

    Whatever the run has not written yet is a sentence in its section.

    Args:
        runs: one or two, see :func:`gram_backbones.report.runs.read_run`.
        data: annotations and pictures of runs that do not say where these are.

    Returns:
        HTML that needs no other file and no network.

    Raises:
        ImportError: jinja2, matplotlib, pycocotools or supervision is missing.
        ValueError: there are other than one or two runs.

    Examples:
        >>> run = Run(Path("output"), "Detectron2", {"total_loss": ((20, 2.5), (40, 1.5))})
        >>> "40 iterations" in render_report([run])
        True
    """
    if len(runs) not in (1, 2):
        raise ValueError(f"there are {len(runs)} runs; a report is of one or two")
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            "reports take jinja2, which is not installed: pip install gram-backbones[analysis]"
        ) from error
    labels = [""] if len(runs) == 1 else [*_LABELS]
    results = [r for run, label in zip(runs, labels) for r in _results(run, label, data)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": _number, "share": _share}
    return environment.get_template("template.html").render(
        runs=list(zip(labels, runs)),
        title=" and ".join(run.name for run in runs),
        facts=_facts(runs),
        training=_training_charts(runs, labels),
        results=results,
        sizes=_size_rows(results),
        classes=_class_rows(results),
        curves=_precision_charts(results),
        matrices=[(r, *_matrix(r.evaluation)) for r in results if r.evaluation],
        changes=_changes(runs),
        same_base=len({run.record.base if run.record else "" for run in runs}) == 1,
        configs=[(label, *_config(run)) for label, run in zip(labels, runs)],
        warnings=[(label, run.warnings.most_common(_WARNINGS)) for label, run in zip(labels, runs)],
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _number(value: float | None) -> str:
    """One digit behind the point; a dash for no number."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def _share(percent: float) -> str:
    """The length of a bar."""
    return "0%" if math.isnan(percent) else f"{percent:.1f}%"


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What is known of the runs themselves, a row each."""
    found = [dict(_run_facts(run)) for run in runs]
    names = dict.fromkeys(name for facts in found for name in facts)
    return [(name, [facts.get(name, "–") for facts in found]) for name in names]


def _run_facts(run: Run) -> Iterator[tuple[str, str]]:
    record, length = run.record, run.max_iterations
    done = (run.finished and length) or run.iterations
    yield "folder", str(run.folder)
    yield "framework", run.framework
    if done and length:
        state = "finished" if run.finished else "still going on, or stopped"
        yield "training", f"{done} of {length} iterations, {state}"
    else:
        yield "training", f"{done} iterations" if done else "none yet, or an evaluation alone"
    if times := run.scalars.get("time"):
        yield "time per iteration", f"{np.median([value for _, value in times]):.2f} s, median"
    for name, value in run.precisions.items():
        kind, _, stat = name.partition("/")
        if stat in ("AP", "AP50"):
            yield f"{KINDS[kind]} {stat}, as logged", _number(value)
    if record is None:
        yield "run.json", "missing, so versions, device, seed and data are unknown"
    else:
        yield "device", record.device
        yield "seed", "none" if record.seed is None else str(record.seed)
        yield "started from", _hashed(record.weights) if record.weights else "random weights"
    if run.checkpoint:
        yield "last weights", _hashed(str(run.checkpoint))
    if record is not None:
        yield "versions", ", ".join(f"{name} {v}" for name, v in record.versions.items())
        yield "command", " ".join(record.command)


def _hashed(weights: str) -> str:
    if not Path(weights).is_file():
        return weights
    return f"{weights}, SHA-256 {file_hash(weights)}"


def _training_charts(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """Losses, learning rate and AP; two runs share a chart."""
    names = dict.fromkeys([*(n for run in runs for n in run.losses), "lr"])
    charts = []
    for name in names:
        series = [(label, run.scalars.get(name)) for label, run in zip(labels, runs)]
        lines = [Line(s, label, i) for i, (label, s) in enumerate(series) if s]
        if lines:
            title = {"lr": "learning rate"}.get(name, name.replace("_", " "))
            charts.append(line_chart(title, lines, x_label="iteration"))
    for kind, word in KINDS.items():
        lines = [
            Line(series, f"{label} {stat}".strip(), colour, dashed=stat == "AP50")
            for colour, (label, run) in enumerate(zip(labels, runs))
            for stat in ("AP", "AP50")
            if (series := run.scalars.get(f"{kind}/{stat}"))
        ]
        if lines:
            charts.append(line_chart(f"{word} AP in percent", lines, x_label="iteration"))
    return charts


def _results(run: Run, label: str, data: Dataset | None) -> Iterator[Result]:
    """The evaluations of a run's predictions, by data set."""
    if not run.predictions:
        reason = "No predictions are saved. Runs save them with their first evaluation"
        if run.framework == "MMDetection" and run.record is None:
            reason += ", MMDetection's own tools only if CocoMetric has an outfile_prefix"
        yield Result(label, "no data set", reason=f"{reason}.")
    places = dict(run.record.datasets) if run.record else {}
    for name, files in run.predictions.items():
        place = (data.json_file, data.image_root) if data else places.get(name)
        result = Result(label, name)
        if place is None:
            result.reason = "The run does not say where its annotations are; give them by --data."
        elif not Path(place[0]).is_file():
            result.reason = f"The annotations {place[0]} are not there; give them by --data."
        else:
            try:
                result.evaluation = evaluate(files, place[0])
                _add_pictures(result, result.evaluation, place[1])
            except EvaluationError as error:
                result.reason = f"Nothing can be compared: {error}."
        yield result


def _add_pictures(result: Result, evaluation: Evaluation, root: str) -> None:
    from .pictures import draw_image

    def draw(image: ImageScore) -> Picture:
        file = evaluation.files[image.image_id]
        try:
            return Picture(file, image, draw_image(evaluation, image.image_id, root))
        except PictureError as error:
            return Picture(file, image, None, str(error))

    count = min(_IMAGES, math.ceil(len(evaluation.images) / 2))
    result.best = [draw(image) for image in evaluation.images[:count]]
    last = evaluation.images[count:][-_IMAGES:]
    result.worst = [draw(image) for image in reversed(last)]


def _evaluated(results: Sequence[Result]) -> list[tuple[str, str, Evaluation]]:
    """Heading, kind and evaluation of every column with AP."""
    return [
        (f"{r.label} {KINDS[kind]}".strip(), kind, r.evaluation)
        for r in results
        if r.evaluation
        for kind in r.evaluation.precisions
    ]


def _size_rows(results: Sequence[Result]) -> dict[str, Any]:
    """AP by the size of the objects, and at single IoUs."""
    columns = _evaluated(results)
    stats = {"AP": "AP", "AP50": "AP at IoU 0.50", "AP75": "AP at IoU 0.75"}
    stats |= {f"AP{size[0]}": f"AP of {size} objects" for size in ("small", "medium", "large")}
    rows = [
        (word, [e.precisions[kind].stats[stat] for _, kind, e in columns])
        for stat, word in stats.items()
    ]
    return dict(heads=[head for head, _, _ in columns], rows=rows)


def _class_rows(results: Sequence[Result]) -> dict[str, Any]:
    """AP by class, the best of the first column first."""
    columns = _evaluated(results)
    names = dict.fromkeys(name for _, _, e in columns for name in e.classes)
    rows = []
    for name in names:
        values, objects = [], []
        for _, kind, e in columns:
            at = e.classes.index(name) if name in e.classes else None
            values.append(math.nan if at is None else float(e.precisions[kind].by_class[at]))
            objects.append(0 if at is None else int(e.objects[at]))
        rows.append((name, max(objects), values))
    rows.sort(key=lambda row: (math.isnan(row[2][0]), -row[2][0], row[0]))
    return dict(heads=[head for head, _, _ in columns], rows=rows)


def _precision_charts(results: Sequence[Result]) -> list[str]:
    recall = np.linspace(0, 1, 101).tolist()
    charts = []
    for result in results:
        if not (evaluation := result.evaluation):
            continue
        common = np.argsort(-evaluation.objects, kind="stable")[:_CURVES]
        shown = [evaluation.classes[i] for i in sorted(common) if evaluation.objects[i]]
        for kind, precision in evaluation.precisions.items():
            start = f"{result.label} {KINDS[kind]}".strip()
            lines = [
                Line([*zip(recall, values)], f"IoU {iou:.2f}", i)
                for i, (iou, values) in enumerate(precision.curves.items())
            ]
            by_class = [
                Line([*zip(recall, precision.class_curves[name])], name, i)
                for i, name in enumerate(shown)
            ]
            for title, drawn in (("mean of the classes", lines), ("IoU 0.50 by class", by_class)):
                if drawn:
                    chart = line_chart(
                        f"{start} precision, {title}", drawn, x_label="recall", limits=(0, 1)
                    )
                    charts.append(chart)
    return charts


def _matrix(evaluation: Evaluation) -> tuple[list[str], list[list[int]], list[tuple]]:
    """Names and counts of the classes with the most mistakes, and the most frequent confusions."""
    counts, names = evaluation.confusion, evaluation.classes
    wrong = counts - np.diag(np.diag(counts))
    mistakes = (wrong.sum(0) + wrong.sum(1))[:-1]
    shown = sorted(np.argsort(-mistakes, kind="stable")[:_MATRIX])
    places = [*shown, len(names)]
    pairs = wrong[:-1, :-1]
    ranked = np.argsort(-pairs, axis=None, kind="stable")[:_PAIRS]
    frequent = [
        (names[i], names[j], int(pairs[i, j]), 100 * pairs[i, j] / max(1, counts[i].sum()))
        for i, j in zip(*np.unravel_index(ranked, pairs.shape))
        if pairs[i, j]
    ]
    return [names[i] for i in shown], counts[np.ix_(places, places)].tolist(), frequent


def _changes(runs: Sequence[Run]) -> list[tuple[str, str, list[str]]]:
    """Keys of the configs that differ from the base: key, the base's value, the runs' values."""
    found = [run.record.changes if run.record else {} for run in runs]
    rows = []
    for key in sorted({key for changes in found for key in changes}):
        base = next(changes[key][0] for changes in found if key in changes)
        rows.append((key, base, [changes.get(key, (base, base))[1] for changes in found]))
    return rows


def _config(run: Run) -> tuple[str, str]:
    """Name and text of the config that the run saved."""
    file = run.config_file
    return (file.name, file.read_text(errors="replace")) if file else ("", "")
