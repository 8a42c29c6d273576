"""Own data in Detectron2: classes that follow the data, refusals, pictures that cannot be read."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import HookBase
from detectron2.modeling import build_model

import gram_backbones.d2 as gram
from gram_backbones.d2.datasets import check_datasets, use_datasets
from gram_backbones.d2.demo_dataset import make_demo_dataset
from gram_backbones.d2.engine import warn_about_data
from gram_backbones.data import DataError, PictureError, read_dataset, read_pair
from tests.conftest import ROOT
from tests.d2.test_backbones import small_config

CLASSES = ["box", "disc", "star"]  # in the order of their ids
OWN = ("my_train", "my_val")


@pytest.fixture
def data(tmp_path):
    """Three of the demo's classes, under ids that neither begin at 1 nor are in order."""
    ids = {"disc": 7, "box": 3, "star": 50}
    for file in make_demo_dataset(tmp_path / "demo", train=6, val=2).values():
        content = json.loads(file.read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        content["categories"] = [dict(id=i, name=name) for name, i in ids.items()]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids.get(names[annotation["category_id"]], 50)
        file.write_text(json.dumps(content))
    names = [*DatasetCatalog]
    specs = [f"{name}={tmp_path}/demo/{name[3:]}.json:{tmp_path}/demo/{name[3:]}" for name in OWN]
    yield read_pair(*specs)
    for name in {*DatasetCatalog} - {*names}:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(data, tmp_path):
    cfg = small_config("demo_mask_rcnn_aognet4m_fpn")
    use_datasets(cfg, *data)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 2, 0.001
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 3, ()
    cfg.TEST.PICTURES.NUM = 2
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


def test_every_head_and_the_class_names_follow_the_data(cfg):
    assert cfg.DATASETS.TRAIN == ("my_train",) and cfg.DATASETS.TEST == ("my_val",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54  # counts stuff
    assert cfg.MODEL.CLASSES == CLASSES
    records = DatasetCatalog.get("my_train")
    assert MetadataCatalog.get("my_train").thing_classes == CLASSES
    assert {a["category_id"] for r in records for a in r["annotations"]} == {0, 1, 2}


@pytest.mark.parametrize("given", (2, 80))
def test_a_given_number_of_classes_must_be_the_data_s(data, given):
    cfg = gram.get_config("retinanet_aognet40m_fpn_1x")
    cfg.MODEL.RETINANET.NUM_CLASSES = given
    message = rf"NUM_CLASSES is {given}, but data set 'my_train' has 3 classes: \['box', 'disc'"
    with pytest.raises(DataError, match=message):
        use_datasets(cfg, *data, given=["MODEL.RETINANET.NUM_CLASSES"])
    assert "my_train" not in DatasetCatalog


def test_given_class_names_must_be_the_data_s(data):
    cfg = gram.get_config("retinanet_aognet40m_fpn_1x")
    cfg.MODEL.CLASSES = ["disc", "box", "star"]
    with pytest.raises(DataError, match=r"\['disc', 'box', 'star'\].*\['box', 'disc', 'star'\]"):
        use_datasets(cfg, *data)


@pytest.mark.parametrize(
    ("name", "key"),
    (
        ("mask_rcnn_aognet12m_fpn_1x", "ROI_HEADS"),
        ("retinanet_aognet40m_fpn_1x", "RETINANET"),
    ),
)
@pytest.mark.parametrize("number", (2, 80))
def test_registered_data_sets_must_fit_the_heads(data, name, key, number, monkeypatch):
    """Before the model is built, also if the names are only in the annotation file."""
    register_coco_instances("plain", {}, data[0].json_file, data[0].image_root)
    cfg = gram.get_config(name)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("plain",), ()
    cfg.MODEL[key].NUM_CLASSES = number
    monkeypatch.setattr(gram.GramTrainer, "build_model", None)
    with pytest.raises(DataError, match=rf"MODEL.{key}.NUM_CLASSES is {number}, but .*'plain'"):
        gram.GramTrainer(cfg)


def test_annotations_with_errors_stop_a_training(cfg, data, monkeypatch):
    next(Path(data[0].image_root).glob("*.png")).unlink()
    monkeypatch.setattr(gram.GramTrainer, "build_model", None)
    with pytest.raises(DataError, match="missing picture"):
        gram.GramTrainer(cfg)


def test_an_evaluation_whose_figure_would_be_too_low_is_refused(cfg, data):
    """pycocotools takes a match with annotation 0 for none."""
    content = json.loads(Path(data[1].json_file).read_text())
    content["annotations"][0]["id"] = 0
    Path(data[1].json_file).write_text(json.dumps(content))
    with pytest.raises(DataError, match="annotation id 0, 1 time"):
        warn_about_data(cfg, cfg.DATASETS.TEST)


def test_own_data_that_is_not_registered_is_told_how_to_give_it():
    with pytest.raises(ValueError, match="'my_val' is not registered.*--dataset.*--val"):
        check_datasets(["my_val"])


def save(model, folder, classes):
    checkpointer = gram.GramCheckpointer(model, str(folder), classes=classes)
    checkpointer.save("model")
    return str(folder / "model.pth")


def test_class_names_of_a_checkpoint_must_be_the_data_s(cfg, tmp_path):
    model = build_model(cfg)
    file = save(model, tmp_path, ["disc", "box", "star"])
    message = r"model.pth was trained on the classes \['disc'.*but the data has \['box'"
    with pytest.raises(DataError, match=message):
        gram.GramCheckpointer(model, classes=CLASSES).load(file)
    with pytest.raises(DataError, match="the checkpoint to resume from was trained on"):
        gram.GramCheckpointer(model, str(tmp_path), classes=CLASSES).resume_or_load("", resume=True)
    four = save(model, tmp_path, [*CLASSES, "more"])
    gram.GramCheckpointer(model, classes=CLASSES).load(four)  # predictors could start anew
    with pytest.raises(DataError, match="more"):
        gram.GramCheckpointer(model, heads="exact", classes=CLASSES).load(four)


@pytest.mark.grid
@pytest.mark.parametrize("where", ("config", "checkpoint"))
def test_a_predictor_knows_the_class_names_without_the_data(cfg, data, tmp_path, where):
    cfg.MODEL.WEIGHTS = save(build_model(cfg), tmp_path, CLASSES if where == "checkpoint" else [])
    cfg.DATASETS.TEST = ("not_registered_here",)
    cfg.MODEL.CLASSES = CLASSES if where == "config" else []
    assert gram.GramPredictor(cfg).metadata.thing_classes == CLASSES


class Spoil(HookBase):
    """Ruins pictures after an iteration."""

    def __init__(self, folder, after):
        self.folder, self.after, self.kept = folder, after, {}

    def after_step(self):
        if self.trainer.iter == self.after:
            for path in self.folder.glob("*.png"):
                self.kept[path] = path.read_bytes()
                path.write_bytes(path.read_bytes()[:100])

    def repair(self):
        for path, content in self.kept.items():
            path.write_bytes(content)


def spoiled_run(cfg, folder, after):
    trainer = gram.GramTrainer(cfg)
    spoil = Spoil(folder, after)
    trainer.register_hooks([spoil])
    trainer._hooks.insert(0, trainer._hooks.pop())  # before the evaluation
    trainer.resume_or_load(resume=False)
    with pytest.raises(PictureError, match=rf"{folder}/\d+\.png"):
        trainer.train()
    return trainer, spoil


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_stops_the_run_after_the_weights_were_saved(cfg, tmp_path):
    trainer, spoil = spoiled_run(cfg, tmp_path / "demo/train", after=1)
    saved = torch.load(tmp_path / "out/model_0000001.pth", weights_only=True)
    state = trainer.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in saved["model"].items())
    assert json.loads(saved["meta"]["classes"]) == CLASSES
    spoil.repair()
    resumed = gram.GramTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2


@pytest.mark.slow
def test_a_run_that_a_picture_stopped_goes_on_as_if_nothing_had_been(cfg, tmp_path):
    cfg.DATASETS.TEST = ()
    ends = []
    for name in ("whole", "stopped"):
        cfg.OUTPUT_DIR = str(tmp_path / name)
        torch.manual_seed(0)
        if name == "stopped":
            spoiled_run(cfg, tmp_path / "demo/train", after=0)[1].repair()
            torch.manual_seed(99)
        trainer = gram.GramTrainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.slow
def test_a_picture_of_the_evaluation_stops_the_run_after_the_weights_were_saved(cfg, tmp_path):
    cfg.TEST.EVAL_PERIOD = 1
    spoiled_run(cfg, tmp_path / "demo/val", after=0)
    assert (tmp_path / "out/model_0000000.pth").is_file()


@pytest.mark.slow
def test_the_path_is_named_across_loader_processes(cfg, tmp_path):
    cfg.DATALOADER.NUM_WORKERS = 1
    for path in (tmp_path / "demo/train").glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])  # its header is right, as the first check wants it
    trainer = gram.GramTrainer(cfg)
    with pytest.raises(PictureError, match=r"^cannot read picture .*demo/train/\d+\.png: .*$"):
        trainer.train()
    assert not list((tmp_path / "out").glob("*.pth"))  # nothing was learned


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (("--dataset", "TRAIN", "MODEL.ROI_HEADS.NUM_CLASSES", "80"), "NUM_CLASSES is 80, but"),
        (("--dataset", "TRAIN", "--val", "TRAIN"), "both data sets are named 'my_train'"),
        (("--val", "TRAIN"), "--val is for --dataset or --eval-only"),
        (("--dataset", "TRAIN"), None),
    ),
)
def test_the_tool_takes_own_data(data, tmp_path, monkeypatch, arguments, message):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import train_net

    spec = f"my_train={data[0].json_file}:{data[0].image_root}"
    config = gram.get_config_file("mask_rcnn_aognet12m_fpn_1x")
    arguments = [spec if argument == "TRAIN" else argument for argument in arguments]
    args = train_net.parse_args(["--config", config, *arguments])
    if message:
        with pytest.raises(ValueError, match=message):
            train_net.load_config(args)
    else:
        cfg = train_net.load_config(args)
        assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.DATASETS.TEST) == (3, ())
        assert args.own == (read_dataset(spec), None)  # for processes that are launched
