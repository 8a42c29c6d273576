"""A trainer in a script does what the command line does: log, config, seed, weights, progress."""

import json
import logging
import re

import cv2
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model

import gram_backbones.d2 as gram
from gram_backbones import cli
from gram_backbones.d2 import runs
from gram_backbones.d2.config import merge_config
from gram_backbones.run_record import read_run_record
from tests.d2.test_backbones import small_config
from tests.d2.test_engine import cfg, demo  # noqa: F401  fixtures

COLOURS = "\x1b["


def test_a_script_of_few_lines_logs_saves_and_loads(cfg, tmp_path, monkeypatch):  # noqa: F811
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "start.pth")
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(tmp_path / "out"), str(tmp_path / "start.pth")
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.DATASETS.TEST = 3, (), ()
    cfg.MODEL.DEVICE = "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg.freeze()
    gram.GramTrainer(cfg).train()
    log = (tmp_path / "out/log.txt").read_text()
    assert re.search(r"loaded (\d+) of \1 tensors from .*start.pth", log)
    assert "running on the CPU" in log and COLOURS not in log and "Model:" not in log
    # The first two iterations, the second with the time left, and the last.
    lines = re.findall(r"events INFO: +(eta: \S+)? +iter: (\d)", log)
    assert [line[1] for line in lines] == ["0", "1", "2"] and lines[1][0].startswith("eta: 0:00")
    saved = get_cfg()
    gram.add_gram_backbones_config(saved)
    saved.merge_from_file(str(tmp_path / "out/config.yaml"))
    assert saved.MODEL.DEVICE == "cpu" and saved.SOLVER.MAX_ITER == 3
    assert cfg.MODEL.DEVICE == "cuda"  # the script's own is left alone
    record = read_run_record(tmp_path / "out")
    assert (record.device, record.seed, record.iterations) == ("cpu", 0, 3)
    assert record.weights == str(tmp_path / "start.pth") and "detectron2" in record.versions
    assert record.changes["SOLVER.MAX_ITER"] == ["40000", "3"] and "SEED" in record.changes


def test_fresh_weights_depend_on_the_seed_alone(cfg):  # noqa: F811
    starts = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(before)
        cfg.SEED = seed
        model = gram.GramTrainer(cfg).model
        starts.append(model.roi_heads.box_head.fc1.weight.detach())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_what_was_loaded_is_not_loaded_again(cfg, tmp_path):  # noqa: F811
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "start.pth")
    cfg.MODEL.WEIGHTS, cfg.DATASETS.TEST = str(tmp_path / "start.pth"), ()
    trainer = gram.GramTrainer(cfg)
    trainer.resume_or_load(resume=False)
    weight = trainer.model.roi_heads.box_head.fc1.weight
    with torch.no_grad():
        weight.fill_(3.0)
    trainer.max_iter = 0
    trainer.train()
    assert weight.eq(3.0).all()


def test_missing_data_is_told_before_anything_is_built(cfg, tmp_path):  # noqa: F811
    register_coco_instances("lost", {}, str(tmp_path / "lost.json"), str(tmp_path / "lost"))
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = ("lost",), str(tmp_path / "out")

    class Own(gram.GramTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return [["mine"]]

    try:
        with pytest.raises(FileNotFoundError, match="lost.json"):
            gram.GramTrainer(cfg)
        assert not (tmp_path / "out").exists()
        assert Own(cfg).data_loader == [["mine"]]  # does not read it
    finally:
        DatasetCatalog.remove("lost")
        MetadataCatalog.remove("lost")


def test_verbose_logs_modules_and_a_second_run_has_its_own_file(cfg, tmp_path):  # noqa: F811
    for name, verbose in (("first", True), ("second", False)):
        cfg.OUTPUT_DIR, cfg.VERBOSE = str(tmp_path / name), verbose
        gram.GramTrainer(cfg)
    texts = [(tmp_path / name / "log.txt").read_text() for name in ("first", "second")]
    assert ["GramGeneralizedRCNN(" in t or "GeneralizedRCNN(" in t for t in texts] == [True, False]
    assert len(texts[0].splitlines()) > 400 > 40 > len(texts[1].splitlines())
    assert str(tmp_path / "second") not in texts[0]


def test_a_file_that_default_setup_writes_gets_every_line_once(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_LOGGERS", ("gram_test",))
    log = logging.getLogger("gram_test")
    log.setLevel("INFO")
    log.propagate = False
    handler = logging.FileHandler(tmp_path / "log.txt")
    log.addHandler(handler)
    runs.log_to(str(tmp_path))
    log.info("once")
    log.removeHandler(handler)
    runs.log_to(str(tmp_path))
    log.warning(f"{COLOURS}31mred{COLOURS}0m")
    handler.close()
    text = (tmp_path / "log.txt").read_text()
    assert text.count("once") == 1 and text.endswith("gram_test WARNING: red\n")
    runs.log_to("")
    assert not any(isinstance(handler, logging.FileHandler) for handler in log.handlers)


def test_lines_come_every_ten_seconds(monkeypatch):
    now, printed = [0.0], []
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    hook = runs.EarlyProgressHook(100)
    hook._printer.write = lambda: printed.append(hook.trainer.iter)
    hook.trainer = type("Trainer", (), dict(start_iter=30, max_iter=100))()
    for iteration in range(30, 100):
        now[0] += 0.1 if iteration < 50 else 4.0
        hook.trainer.iter = iteration
        hook.after_step()
    # Iterations 39, 59, 79, 99 are Detectron2's own.
    assert printed[:4] == [30, 31, 52, 55] and not {39, 59, 79, 99} & {*printed}
    assert all(b - a <= 5 for a, b in zip(printed[2:], printed[3:]))


@pytest.mark.parametrize(
    ("text", "changes", "meant"),
    (
        ("", ["SOLVER.MAX_ITR", "3"], "no key SOLVER.MAX_ITR .did you mean 'SOLVER.MAX_ITER'"),
        ("MODEL: {AOGNET: {VARIENT: aognet_12m}}", [], "did you mean 'MODEL.AOGNET.VARIANT'"),
    ),
)
def test_misspelt_keys_are_told_what_they_may_mean(text, changes, meant, tmp_path):
    (tmp_path / "c.yaml").write_text(text or "SEED: 1")
    cfg = small_config("demo_mask_rcnn_aognet4m_fpn")  # noqa: F811
    with pytest.raises(ValueError, match=meant):
        merge_config(cfg, str(tmp_path / "c.yaml"), changes)
    with pytest.raises(ValueError, match="mask_rcnn_aognet12_fpn_1x' .did you mean 'mask_rcnn_aog"):
        gram.get_config_file("mask_rcnn_aognet12_fpn_1x")


@pytest.mark.parametrize("text", ("", "TEST: {EVAL_PERIOD: }"))
def test_none_does_not_replace_a_number(text, tmp_path):
    """yacs lets it, and the training would fail after its first iteration."""
    (tmp_path / "c.yaml").write_text(text or "SEED: 1")
    cfg = small_config("demo_mask_rcnn_aognet4m_fpn")  # noqa: F811
    changes = [] if text else ["TEST.EVAL_PERIOD", "None"]
    with pytest.raises(ValueError, match="TEST.EVAL_PERIOD is None; allowed is .* of type int"):
        merge_config(cfg, str(tmp_path / "c.yaml"), changes)


@pytest.mark.slow
def test_predict_draws_every_image_and_writes_what_it_found(cfg, demo, tmp_path, capsys):  # noqa: F811
    cfg.DATASETS.TEST = ()
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "w.pth")
    (tmp_path / "c.yaml").write_text(cfg.dump())
    arguments = [tmp_path / "c.yaml", tmp_path / "w.pth", demo / "val", "--output", tmp_path / "o"]
    cli.main(["predict", *map(str, arguments), "--score", "0.01"])
    images = sorted((demo / "val").glob("*.png"))
    found = json.loads((tmp_path / "o/predictions.json").read_text())
    assert [*found] == [str(image) for image in images] and len(images) == 4
    for image in images:
        assert cv2.imread(str(tmp_path / "o" / image.name)).shape == (424, 400, 3)  # and a title
        boxes, scores, classes = (found[str(image)][k] for k in ("boxes", "scores", "classes"))
        assert len(boxes) == len(scores) == len(classes) > 0
        assert all(0 <= x <= 160 for box in boxes for x in box) and {*classes} <= {0, 1, 2, 3}
    assert f"4/4 {images[3]}: " in capsys.readouterr().out
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    arguments[2:3] = [tmp_path / "junk.jpg", images[0]]
    with pytest.raises(SystemExit, match="1 of 2 inputs cannot be read"):
        cli.main(["predict", *map(str, arguments)])
    assert f"cannot read picture {tmp_path / 'junk.jpg'}: " in capsys.readouterr().err
    assert [*json.loads((tmp_path / "o/predictions.json").read_text())] == [str(images[0])]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", str(tmp_path / "c.yaml"), "gone.pth", str(demo / "val")])
    assert "gone.pth" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_keeps_no_files_and_threads():
    """A sample of ``tests/reliability/check_long_runs.py``; memory has not settled so early."""
    pytest.importorskip("psutil")
    from tests.reliability.check_long_runs import check

    samples, grown = check("detectron2", 40)
    assert [sample.iterations for sample in samples] == [10, 20, 30, 40]
    assert not [what for what in grown if not what.startswith("memory")]
