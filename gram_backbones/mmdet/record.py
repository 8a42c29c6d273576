"""What a run leaves for its report: ``run.json``, and its predictions as COCO results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import mmcv
import mmdet
import mmengine
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from .. import __version__
from ..run_record import RunRecord, config_changes, installed_versions
from .own_data import leaf_datasets


def keep_predictions(cfg: Config) -> None:
    """Let ``CocoMetric`` keep its results, in ``work_dir/predictions``.

    Files are ``val.bbox.json``, ``test.segm.json`` and so on. A prefix of the config's own is kept.
    """
    for part, evaluator in _evaluators(cfg):
        if evaluator.get("outfile_prefix") is None:
            evaluator["outfile_prefix"] = os.path.join(cfg.work_dir, "predictions", part)


def evaluate_classes(cfg: Config) -> None:
    """Let ``CocoMetric`` log the AP of every class, unless the config says no."""
    for _, evaluator in _evaluators(cfg):
        evaluator.setdefault("classwise", True)


def record_run(runner: Runner) -> RunRecord:
    """The record of a run that is being built."""
    cfg = runner.cfg
    train = cfg.get("train_cfg") or {}
    base, name = _base_config(cfg)
    return RunRecord(
        versions=installed_versions(
            gram_backbones=__version__,
            mmdet=mmdet.__version__,
            mmcv=mmcv.__version__,
            mmengine=mmengine.__version__,
        ),
        device=get_device(),
        seed=runner.seed,
        weights=cfg.get("load_from") or _initial_weights(cfg),
        iterations=train.get("max_iters") or 0,
        epochs=train.get("max_epochs") or 0,
        datasets=_datasets(cfg),
        base=name,
        changes=config_changes(base, _plain(cfg)),
    )


def _plain(cfg: Config) -> dict[str, Any]:
    return {key: cfg.get(key) for key in cfg.keys()}


def _base_config(cfg: Config) -> tuple[dict[str, Any], str]:
    """What the ``_base_`` of the config's file says, and its name."""
    if not cfg.filename or not os.path.isfile(cfg.filename):
        return {}, ""
    files = Config._get_base_files(cfg.filename)
    folder = os.path.dirname(os.path.abspath(cfg.filename))
    places = [file if "::" in file else os.path.join(folder, file) for file in files]
    if not places:
        return {}, ""
    return _plain(Config.fromstring(f"_base_ = {places!r}", ".py")), ", ".join(files)


def _initial_weights(cfg: Config) -> str:
    model = cfg.get("model")
    if not isinstance(model, dict):  # it was built before
        return ""
    found = (model.get("backbone") or {}).get("init_cfg") or {}
    return found.get("checkpoint") or ""


def _datasets(cfg: Config) -> dict[str, tuple[str, str]]:
    found = {}
    for part, evaluator in _evaluators(cfg):
        leaves = [*leaf_datasets((cfg.get(f"{part}_dataloader") or {}).get("dataset"))]
        if len(leaves) == 1 and evaluator.get("ann_file"):
            images = (leaves[0].get("data_prefix") or {}).get("img") or ""
            root = os.path.join(leaves[0].get("data_root") or "", images)
            if "://" not in evaluator["ann_file"] + root:
                found[part] = os.path.abspath(evaluator["ann_file"]), os.path.abspath(root)
    return found


def _evaluators(cfg: Config) -> Iterator[tuple[str, dict]]:
    """The configs of ``CocoMetric`` for validation and test."""
    for part in ("val", "test"):
        found = cfg.get(f"{part}_evaluator") or []
        for evaluator in [found] if isinstance(found, dict) else found:
            if isinstance(evaluator, dict) and evaluator.get("type") == "CocoMetric":
                yield part, evaluator
