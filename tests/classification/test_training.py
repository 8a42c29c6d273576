"""Training classifiers: loops, resume, processes and files."""

import json
import math
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed")

from gram_backbones import create_model, distributed
from gram_backbones.classification import engine
from gram_backbones.classification.building import RunConfig
from gram_backbones.classification.checkpoint import read_checkpoint
from gram_backbones.classification.data import open_datasets
from gram_backbones.classification.engine import Evaluation, Trainer
from gram_backbones.classification.processes import Processes
from gram_backbones.distributed import ProcessesDifferError
from gram_backbones.preprocessing import CIFAR_RGB
from tests.classification.tiny import CPU, make_folder, same, tiny_recipe, trainer


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("shapes"), 48, 16)


@pytest.mark.slow
def test_a_small_network_learns_shapes_and_the_files_say_so(shapes, tmp_path):
    recipe = tiny_recipe(epochs=4, dropout=0.0, ema_decay=0.9)
    history = trainer(shapes, tmp_path, recipe).run()
    assert history[-1]["top1"] > 60  # chance is 25
    assert history[-1]["loss"] < 0.75 * history[0]["loss"]
    assert history[-1]["top5"] == 100  # of four classes
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history and [line["epoch"] for line in lines] == [1, 2, 3, 4]
    last, best = (torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in ("last", "best"))
    tops = [max(line["top1"], line["ema_top1"]) for line in history]
    assert float(last["meta"]["top1"]) == pytest.approx(tops[-1], abs=0.006)
    assert float(best["meta"]["top1"]) == pytest.approx(max(tops), abs=0.006)
    assert int(best["meta"]["epoch"]) == tops.index(max(tops)) + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.pth",
        "last.pth",
        "metrics.jsonl",
        "previous.pth",
    ]


def test_the_meta_of_a_checkpoint_is_plain_strings(few, tmp_path):
    trainer(few, tmp_path, tiny_recipe(epochs=1, warmup_epochs=0)).run()
    meta = torch.load(tmp_path / "last.pth", weights_only=True)["meta"]
    assert all(type(key) is type(value) is str for key, value in meta.items())
    wanted = dict(
        model="aognet_tiny",
        dataset="folder",
        num_classes="4",
        image_size="16",
        epoch="1",
        mean="(125.307, 122.95, 113.865)",
        std="(62.993, 62.089, 66.705)",
        channel_order="RGB",
        source="tools/train_classifier.py",
    )
    assert {key: meta[key] for key in wanted} == wanted


@pytest.mark.grid
@pytest.mark.parametrize("better", ("network", "moving average"))
def test_the_better_of_network_and_average_is_what_a_detector_gets(
    better, few, tmp_path, monkeypatch
):
    run = trainer(few, tmp_path, tiny_recipe(epochs=1, warmup_epochs=0))
    good = run.model if better == "network" else run.ema.module

    def fake(model, *_, **__):
        return dict(val_loss=1.0, top1=90.0 if model is good else 10.0, top5=100.0)

    monkeypatch.setattr(engine, "evaluate", fake)
    run.run()
    content = read_checkpoint(tmp_path / "last.pth")
    assert (content["meta"]["weights"], content["meta"]["top1"]) == (better, "90.00")
    for name, value in good.state_dict().items():
        assert torch.equal(content["state_dict"][name], value)
    other = content["training"]["ema" if better == "network" else "model"]
    assert any(not torch.equal(content["state_dict"][n], v) for n, v in other.items())


def watch_losses(monkeypatch):
    """The targets and the label smoothing of every training loss from here on."""
    seen, loss = [], torch.nn.functional.cross_entropy

    def watch(logits, labels, **options):
        if options:  # evaluation has none
            seen.append((labels.clone(), options["label_smoothing"]))
        return loss(logits, labels, **options)

    monkeypatch.setattr(engine.F, "cross_entropy", watch)
    return seen


def test_mixup_and_label_smoothing_reach_the_loss(few, tmp_path, monkeypatch):
    seen = watch_losses(monkeypatch)
    recipe = tiny_recipe(epochs=1, warmup_epochs=0, mixup=0.2, label_smoothing=0.1)
    trainer(few, tmp_path, recipe).run()
    targets = torch.cat([labels for labels, _ in seen])
    assert targets.shape == (16, 4) and {smoothing for _, smoothing in seen} == {0.1}
    assert torch.allclose(targets.sum(1), torch.ones(16))
    assert ((targets > 0.001) & (targets < 0.999)).any()


def test_every_epoch_has_an_order_of_its_own(few, tmp_path, monkeypatch):
    seen = watch_losses(monkeypatch)
    trainer(few, tmp_path, tiny_recipe(), batch=16).run()
    (first, _), (second, _) = seen
    assert not torch.equal(first, second)
    assert torch.equal(first.bincount(), second.bincount())


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_stopped(few, tmp_path, monkeypatch):
    """With all that is random: order, crops, dropout, mixup; stopped in the middle of an epoch."""
    recipe = tiny_recipe(epochs=3, mixup=0.2, label_smoothing=0.1, dropout=0.3)
    recipe = replace(recipe, augmentation="resized_crop")  # timm's crops take python's random
    trainer(few, tmp_path / "whole", recipe).run()
    run = trainer(few, tmp_path / "parts", recipe)
    update = Trainer._update

    def stop(self, *batch):
        if self.updates == 3:
            raise Stopped
        return update(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", stop)
        with pytest.raises(Stopped):
            run.run()
    assert read_checkpoint(tmp_path / "parts/last.pth")["training"]["updates"] == 2
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    trainer(few, tmp_path / "parts", recipe, resume=tmp_path / "parts/last.pth").run()
    trainer(few, tmp_path / "other", recipe, seed=1).run()
    whole, parts, other = (
        read_checkpoint(tmp_path / n / "last.pth") for n in ("whole", "parts", "other")
    )
    assert same(parts, whole)
    assert not same(other, whole)
    lines = (tmp_path / "parts/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_run_is_continued_only_as_what_it_was(few, tmp_path):
    recipe = tiny_recipe(epochs=1, warmup_epochs=0)
    trainer(few, tmp_path, recipe).run()
    last = tmp_path / "last.pth"
    with pytest.raises(FileExistsError, match="already contains a run"):
        trainer(few, tmp_path, recipe)
    with pytest.raises(
        ValueError, match="another run: lr is 0.2 here, 0.1 there; mixup is 0.2 here, 0.0 there"
    ):
        trainer(few, tmp_path, replace(recipe, mixup=0.2), lr=0.2, resume=last)
    assert trainer(few, tmp_path, recipe, resume=last).run()[-1]["epoch"] == 1  # nothing is left
    content = read_checkpoint(last)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="only weights, so no run"):
        trainer(few, tmp_path, recipe, resume=tmp_path / "weights.pth")
    (tmp_path / "broken.pth").write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot read .*broken.pth"):
        trainer(few, tmp_path, recipe, resume=tmp_path / "broken.pth")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*none.pth"):
        trainer(few, tmp_path, recipe, resume=tmp_path / "none.pth")


@pytest.mark.slow
def test_a_resumed_run_may_be_longer_and_never_shorter(few, tmp_path, capsys):
    recipe = tiny_recipe(epochs=2, warmup_epochs=0)
    trainer(few, tmp_path, recipe).run()
    longer = replace(recipe, epochs=4)
    capsys.readouterr()
    history = trainer(few, tmp_path, longer, resume=tmp_path / "last.pth").run()
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    # Half the cosine of four epochs is left, where the shorter run's learning rate was 0.
    assert history[2]["lr"] == pytest.approx(0.05) and "it is 0.05" in capsys.readouterr().out
    with pytest.raises(ValueError, match="epochs is 2 here, 4 there"):
        trainer(few, tmp_path, recipe, resume=tmp_path / "last.pth")


def test_a_process_without_the_others_checkpoint_begins_no_run(few, tmp_path, monkeypatch):
    """Bug: it did, and the others waited for its word on theirs."""

    def gather(values, own):
        values[:] = [own, ("last.pth", 4)]

    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(distributed.dist, name, lambda value=value: value)
    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    said = r"checkpoint to go on from differs .*: \[\(None, 0\), \('last.pth', 4\)\]"
    with pytest.raises(ProcessesDifferError, match=said):
        trainer(few, tmp_path, tiny_recipe())


@pytest.mark.grid
@pytest.mark.parametrize("update", (1, 3), ids=("in the first epoch", "in the second"))
def test_sigterm_saves_within_an_update_and_the_rest_is_the_same(
    update, few, tmp_path, monkeypatch
):
    recipe = tiny_recipe(mixup=0.2, dropout=0.3, warmup_epochs=0)
    trainer(few, tmp_path / "whole", recipe).run()
    run = trainer(few, tmp_path / "parts", recipe)
    step = run._update

    def killed(*batch):
        if run.updates == update - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*batch)

    monkeypatch.setattr(run, "_update", killed)
    with pytest.raises(SystemExit) as ended:
        run.run()
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    last = tmp_path / "parts/last.pth"
    assert read_checkpoint(last)["training"]["updates"] == update
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    trainer(few, tmp_path / "parts", recipe, resume=last).run()
    assert same(read_checkpoint(last), read_checkpoint(tmp_path / "whole/last.pth"))


def test_evaluation_refuses_another_network_s_weights(few, tmp_path):
    recipe = tiny_recipe()
    state = create_model("aognet_tiny", num_classes=5).state_dict()
    torch.save({"state_dict": state}, tmp_path / "five.pth")
    config = RunConfig("aognet_tiny", "folder", recipe, 4, 8)
    val = open_datasets(few, "folder", recipe, CIFAR_RGB)[1]
    with pytest.raises(ValueError, match="five.pth has 5 classes, but the images have 4"):
        Evaluation(config, val, tmp_path / "five.pth", CPU)
    torch.save({"state_dict": {**state}}, tmp_path / "fits.pth")
    found = Evaluation(replace(config, num_classes=5), val, tmp_path / "fits.pth", CPU).run()
    assert found["top5"] == 100 and found["val_loss"] == pytest.approx(math.log(5), rel=0.1)


def test_bf16_computes_in_bf16_and_keeps_float32_weights(few, tmp_path):
    recipe = tiny_recipe(epochs=1, warmup_epochs=0, dropout=0.0)
    kinds = set()
    losses = {}
    for amp in ("none", "bf16"):
        run = trainer(few, tmp_path / amp, recipe, amp=amp, lr=0.01)
        run.model.res2.register_forward_hook(lambda _m, _i, out: kinds.add(out.dtype))
        losses[amp] = run.run()[-1]["loss"]
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert kinds == {torch.float32, torch.bfloat16}
    assert losses["bf16"] == pytest.approx(losses["none"], rel=0.02)
    assert losses["bf16"] != losses["none"]


def test_a_run_that_diverges_stops_and_keeps_what_was_saved(few, tmp_path, monkeypatch):
    run = trainer(few, tmp_path, tiny_recipe())
    update = run._update

    def poisoned(images, labels):
        return update(images * (float("nan") if run.epoch else 1), labels)

    monkeypatch.setattr(run, "_update", poisoned)
    with pytest.raises(FloatingPointError, match="diverged at iteration 3: loss is nan") as caught:
        run.run()
    said = str(caught.value)
    assert "of stem.0.0 (Conv2d), whose input is not finite" in said
    assert str(few / "train") in said and f"last good checkpoint: {tmp_path / 'last.pth'}" in said
    state = read_checkpoint(tmp_path / "last.pth")["training"]
    assert state["history"][-1]["epoch"] == 1
    assert all(v.isfinite().all() for v in state["model"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (dict(amp="fp16"), "amp is 'fp16', which needs a GPU"),
        (dict(amp="fp8"), "amp is 'fp8'; allowed are.*bf16"),
        (dict(lr=-1.0), "lr is -1.0"),
        (dict(seed=-1), "seed is -1; it must be at least 0"),
        (dict(batch=0), "batch_size is 0; it must be at least 1"),
        (dict(batch=17), "16 training images do not fill one batch of 17"),
        (dict(batch=3, recipe=tiny_recipe(mixup=0.2)), "with mixup, the number must be even"),
    ),
)
def test_an_impossible_run_is_refused(change, message, few, tmp_path):
    recipe = change.pop("recipe", tiny_recipe())
    with pytest.raises(ValueError, match=message):
        trainer(few, tmp_path, recipe, **change)


def test_the_batch_must_divide_among_the_processes(few, tmp_path):
    recipe = tiny_recipe()
    sets = open_datasets(few, "folder", recipe, CIFAR_RGB)
    config = RunConfig("aognet_tiny", "folder", recipe, 4, 8)
    with pytest.raises(ValueError, match="batch_size is 8; it must be a multiple of 3"):
        Trainer(config, *sets, tmp_path, Processes(0, 3, torch.device("cpu")))
