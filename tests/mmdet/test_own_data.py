"""Own data in MMDetection: classes that follow the data, refusals, pictures that cannot be read."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="MMDetection is not installed")
pytest.importorskip("detectron2", reason="its part of the package draws the data set")

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from torch import nn

from gram_backbones.d2.demo_dataset import make_demo_dataset
from gram_backbones.data import DataError, PictureError, read_pair
from gram_backbones.mmdet import GramRunner, inference
from gram_backbones.mmdet.own_data import (
    check_annotations,
    check_classes,
    class_names,
    loader_classes,
    name_pictures,
    use_datasets,
)
from gram_backbones.weights.files import WeightFile
from tests.conftest import ROOT
from tests.mmdet.test_runs import SMALL_ATSS

CONFIGS = ROOT / "mmdet_configs"
ATSS = CONFIGS / "atss/atss_dgnet-r50_fpn_1x_coco.py"
CLASSES = ("box", "disc", "star")  # in the order of their ids
LISTED = ("disc", "box", "star")  # in the order of the file


@pytest.fixture
def specs(tmp_path):
    """Three of the demo's classes, under ids that neither begin at 1 nor are in order."""
    ids = {"disc": 7, "box": 3, "star": 50}
    for file in make_demo_dataset(tmp_path / "demo", train=6, val=2).values():
        content = json.loads(file.read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        content["categories"] = [dict(id=i, name=name) for name, i in ids.items()]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids.get(names[annotation["category_id"]], 50)
        file.write_text(json.dumps(content))
    demo = tmp_path / "demo"
    return [f"my_{split}={demo}/{split}.json:{demo}/{split}" for split in ("train", "val")]


def load(name, tmp_path):
    init_default_scope("mmdet")
    cfg = Config.fromfile(CONFIGS / name)
    cfg.work_dir = str(tmp_path / "out")
    return cfg


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "heads"),
    (
        ("mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py", 2),
        ("cascade_rcnn/cascade-mask-rcnn_aognet-40m_fpn_1x_coco.py", 4),
        ("retinanet/retinanet_aognet-40m_fpn_1x_coco.py", 1),
        ("detr/detr_aognet-12m_8xb2-150e_coco.py", 1),
    ),
)
def test_every_head_and_the_class_names_follow_the_data(specs, tmp_path, name, heads):
    cfg = load(name, tmp_path)
    use_datasets(cfg, *read_pair(*specs))
    numbers = json.dumps(cfg.model.to_dict()).count('"num_classes": 3')
    assert (numbers, json.dumps(cfg.model.to_dict()).count('"num_classes": 80')) == (heads, 0)
    for part in ("train", "val", "test"):
        leaf = cfg[f"{part}_dataloader"].dataset
        assert leaf.metainfo.classes == CLASSES
        data = DATASETS.build({**leaf, "pipeline": []})
        assert data.cat_ids == [3, 7, 50]  # in the order of the class names
    assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file


def test_without_val_nothing_is_evaluated(specs, tmp_path):
    cfg = load("mask_rcnn/mask-rcnn_aognet-12m_fpn_1x_coco.py", tmp_path)
    use_datasets(cfg, *read_pair(specs[0], None))
    assert cfg.val_dataloader is cfg.val_evaluator is cfg.val_cfg is None


@pytest.mark.parametrize(("number", "given"), ((2, []), (80, ["model.bbox_head.num_classes"])))
def test_a_given_number_of_classes_must_be_the_data_s(specs, tmp_path, number, given):
    cfg = load("retinanet/retinanet_aognet-40m_fpn_1x_coco.py", tmp_path)
    cfg.model.bbox_head.num_classes = number
    message = rf"bbox_head.num_classes is {number}, but data set 'my_train' has 3 classes: \['box'"
    with pytest.raises(DataError, match=message):
        use_datasets(cfg, *read_pair(*specs), given=given)


def test_val_is_evaluated_though_the_training_before_had_none(specs, tmp_path):
    cfg = load(ATSS, tmp_path)
    train, val = read_pair(*specs)
    use_datasets(cfg, train, None)
    use_datasets(cfg, None, val)
    assert class_names(cfg.val_dataloader.dataset) == CLASSES
    assert cfg.val_dataloader.dataset.ann_file == cfg.val_evaluator.ann_file
    assert cfg.val_cfg.type == "ValLoop"


def test_predictions_have_the_names_in_the_checkpoint(tmp_path, monkeypatch):
    file = WeightFile("w.pth", {}, {"classes": json.dumps(CLASSES)})
    monkeypatch.setattr(inference, "read_weight_file", lambda weights: file)
    monkeypatch.setattr(inference, "init_detector", lambda *a, **k: nn.Module())
    detector = inference.load_detector(load(ATSS, tmp_path), "w.pth")
    assert detector.dataset_meta["classes"] == CLASSES
    assert len(detector.dataset_meta["palette"]) == 3


def test_given_class_names_must_be_the_data_s(specs, tmp_path):
    cfg = load("retinanet/retinanet_aognet-40m_fpn_1x_coco.py", tmp_path)
    cfg.train_dataloader.dataset.metainfo = dict(classes=LISTED)
    with pytest.raises(DataError, match=r"\['disc', 'box', 'star'\].*\['box', 'disc', 'star'\]"):
        use_datasets(cfg, *read_pair(*specs))


def loader_of(spec, classes=None):
    file, folder = spec.partition("=")[2].split(":")
    leaf = dict(type="CocoDataset", ann_file=file, data_prefix=dict(img=folder))
    if classes:
        leaf["metainfo"] = dict(classes=classes)
    init_default_scope("mmdet")
    return dict(dataset=dict(type="RepeatDataset", times=2, dataset=leaf))


def test_data_sets_with_stuff_or_words_are_not_compared_with_heads():
    """Their heads count other things than the names in metainfo."""
    init_default_scope("mmdet")
    assert class_names(dict(type="CocoPanopticDataset")) == ()
    assert class_names(dict(type="CocoDataset", return_classes=True)) == ()
    assert len(class_names(dict(type="CocoDataset"))) == 80
    assert loader_classes(dict(dataset=[1, 2, 3])) == ()  # built by the user


class Head(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.num_classes = number


@pytest.mark.parametrize("number", (2, 80, 3))
def test_heads_must_fit_the_config_s_data(specs, number):
    model = nn.ModuleDict({"rpn_head": Head(1), "bbox_head": Head(number)})
    loaders = (loader_of(specs[0], LISTED), None)
    if number == 3:
        check_classes(model, loaders)
        return
    with pytest.raises(DataError, match=rf"bbox_head.num_classes is {number}.*3 classes: \['disc'"):
        check_classes(model, loaders)


@pytest.mark.parametrize(
    ("classes", "message"),
    (
        (None, r"\['person', .* but data set .*\['disc', 'box', 'star'\]"),  # COCO's, by default
        (("box", "disc", "star"), r"\['box', 'disc', 'star'\], but"),  # another order
        (("disc", "cow"), r"\['disc', 'cow'\], but"),
        (("disc", "star"), None),
        (LISTED, None),
    ),
)
def test_class_names_of_a_config_must_be_in_the_file(specs, classes, message):
    loaders = (loader_of(specs[0], classes),)
    if message:
        with pytest.raises(DataError, match=message):
            check_annotations(*loaders, masks=True)
    else:
        warnings = check_annotations(*loaders, masks=True)
        left = [line for line in warnings if "leaves out the classes ['box']" in line]
        assert len(left) == (len(classes) == 2)


def test_annotations_with_errors_are_refused(specs, tmp_path):
    next((tmp_path / "demo/train").glob("*.png")).unlink()
    with pytest.raises(DataError, match="missing picture"):
        check_annotations(loader_of(specs[0], LISTED), masks=True)


def test_an_evaluation_whose_figure_would_be_too_low_is_refused(specs, tmp_path):
    """pycocotools takes a match with annotation 0 for none."""
    file = tmp_path / "demo/val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["id"] = 0
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="annotation id 0, 1 time"):
        check_annotations(None, loader_of(specs[1], LISTED), masks=True)


def test_a_built_data_set_names_the_picture(specs, tmp_path):
    leaf = loader_of(specs[0], LISTED)["dataset"]
    leaf["dataset"]["pipeline"] = [dict(type="LoadImageFromFile")]
    data = DATASETS.build(leaf)
    name_pictures(data)
    assert data[0]["img"].shape == (160, 160, 3)
    for path in (tmp_path / "demo/train").glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(PictureError, match=r"demo/train/00000\d.png"):
        data[0]


class Spoil(Hook):
    """Ruins pictures after an iteration."""

    priority = "VERY_LOW"

    def __init__(self, folder, after):
        self.folder, self.after, self.kept = folder, after, {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            self.trained = {n: v.clone() for n, v in runner.model.state_dict().items()}
            for path in self.folder.glob("*.png"):
                self.kept[path] = path.read_bytes()
                path.write_bytes(b"")

    def repair(self):
        for path, content in self.kept.items():
            path.write_bytes(content)


def small_run(specs, folder, **changes):
    extra = SMALL_ATSS.format(
        backbone=dict(type="AOGNet", variant="aognet_4m"),
        channels=[56, 120, 256, 640],
        batch_size=2,
    ).replace("num_classes=4", "num_classes=3")
    folder.mkdir(exist_ok=True)
    file = folder / "config.py"
    file.write_text(f"""
_base_ = {str(ATSS)!r}
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict())
val_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=9, save_last=False))
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=2, val_interval=9)
log_processor = dict(by_epoch=False)
param_scheduler = []
{extra.replace('["interval"] = 1', '["interval"] = 9')}
""")
    cfg = Config.fromfile(file)
    cfg.train_cfg.max_iters = 3
    cfg.work_dir = str(folder / "out")
    use_datasets(cfg, *read_pair(*specs))
    cfg.merge_from_dict(changes)
    cfg.experiment_name = f"{folder.name}{len(changes)}"
    return GramRunner.from_cfg(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("split", ("train", "val"))
def test_a_picture_that_cannot_be_read_stops_the_run_after_the_weights_were_saved(
    specs, tmp_path, split
):
    folder = tmp_path / split
    changes = {"train_cfg.val_interval": 2} if split == "val" else {}
    if split == "val":  # the average is in the model while it is evaluated
        changes["custom_hooks"] = [dict(type="EMAHook")]
    runner = small_run(specs, folder, **changes)
    spoil = Spoil(tmp_path / "demo" / split, after=2)
    runner.register_hook(spoil)
    with pytest.raises(PictureError, match=rf"demo/{split}/\d+.png"):
        runner.train()
    assert Path((folder / "out/last_checkpoint").read_text()) == folder / "out/iter_2.pth"
    saved = torch.load(folder / "out/iter_2.pth", weights_only=False)
    assert (saved["meta"]["iter"], saved["meta"]["dataset_meta"]["classes"]) == (2, CLASSES)
    state = saved["state_dict"]
    if split == "val":  # EMAHook saves the average as the model's, and these next to it
        ema = saved["ema_state_dict"]
        state = {n.removeprefix("module."): v for n, v in ema.items() if n.startswith("module.")}
    assert all(torch.equal(value, state[name]) for name, value in spoil.trained.items())
    if split == "val":
        return
    spoil.repair()
    resumed = small_run(specs, folder, resume=True)
    resumed.train()
    assert resumed.iter == 3


@pytest.mark.slow
def test_class_names_of_a_checkpoint_must_be_the_data_s(specs, tmp_path):
    runner = small_run(specs, tmp_path / "run")
    for classes in (LISTED, (*LISTED, "more")):
        meta = dict(dataset_meta=dict(classes=classes), mmengine_version="0.10")
        state = runner.model.state_dict()
        file = str(tmp_path / f"{len(classes)}.pth")
        torch.save(dict(meta=meta, state_dict=state), file)
        runner._heads = "other_classes"
        if len(classes) == 3:
            with pytest.raises(DataError, match=r"3.pth was trained on .*\['disc'.*\['box'"):
                runner.load_checkpoint(file)
        else:
            runner.load_checkpoint(file)
        runner._heads = "exact"
        with pytest.raises(DataError, match="was trained on"):
            runner.load_checkpoint(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (("--dataset", "TRAIN", "--val", "TRAIN"), "both data sets are named 'my_train'"),
        (("--val", "TRAIN"), "--val is for --dataset"),
        (
            ("--dataset", "TRAIN", "--cfg-options", "model.bbox_head.num_classes=80"),
            "num_classes is 80, but data set 'my_train' has 3 classes",
        ),
    ),
)
def test_the_tool_refuses_with_a_sentence(specs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.chdir(tmp_path)
    import train_mmdet

    arguments = [specs[0] if argument == "TRAIN" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["train_mmdet.py", str(ATSS), *arguments])
    with pytest.raises(SystemExit, match=message):
        train_mmdet.main()
