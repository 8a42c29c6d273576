"""Training classifiers: recipes, optimisers and data."""

import hashlib
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import datasets

pytest.importorskip("timm", reason="timm is not installed")

from gram_backbones import create_model, list_models
from gram_backbones.aognet import NodeOperation
from gram_backbones.classification.building import (
    RunConfig,
    build_classifier,
    build_optimizer,
    build_scheduler,
)
from gram_backbones.classification.data import (
    build_transform,
    evaluation_loader,
    open_datasets,
    training_loader,
)
from gram_backbones.classification.recipes import RECIPES, Recipe, find_recipe
from gram_backbones.preprocessing import CIFAR_RGB, IMAGENET_RGB, Preprocessing

# section 4.2 of AOGNet, appendix 6.1 of DG-Net
FIGURES = {
    "aognet_imagenet": dict(lr=0.4, epochs=120, weight_decay=1e-4, dropout=0.1, label_smoothing=0),
    "dgnet_resnet": dict(lr=0.4, epochs=100, weight_decay=1e-4, dropout=0, label_smoothing=0.1),
    "dgnet_regnet": dict(lr=0.8, epochs=100, weight_decay=5e-5, dropout=0, label_smoothing=0.1),
    "dgnet_mobilenet_v2": dict(
        lr=0.4, epochs=200, weight_decay=4e-5, dropout=0.2, label_smoothing=0.1
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_recipes_have_the_papers_figures(name):
    recipe = RECIPES[name]
    wanted = dict(FIGURES[name], batch=1024, warmup_epochs=5, mixup=0, image_size=224)
    assert {key: getattr(recipe, key) for key in wanted} == wanted
    assert recipe.augmentation == "resized_crop"


@pytest.mark.parametrize(
    ("model", "dataset", "wanted"),
    (
        ("aognet_12m", "folder", "aognet_imagenet"),
        ("aognet_12m", "cifar100", "aognet_cifar"),
        ("aognet_cifar_pruned", "cifar10", "aognet_cifar"),
        ("aognet_cifar_full_lateral", "folder", "aognet_cifar"),
        ("aognet_cifar_s_pruned_lateral", "cifar10", "cifar_small"),
        ("aognet_cifar_s_full", "folder", "cifar_small"),
        ("dgnet_cifar_r20", "cifar100", "cifar_small"),
        ("dgnet_cifar_r20", "folder", "cifar_small"),
        ("dgnet_r50", "folder", "dgnet_resnet"),
        ("dgnet_x50", "folder", "dgnet_resnet"),
        ("dgnet_regnetx_600m", "folder", "dgnet_regnet"),
        ("dgnet_mobilenet_v2", "folder", "dgnet_mobilenet_v2"),
    ),
)
def test_a_model_gets_its_recipe(model, dataset, wanted):
    assert find_recipe(model, dataset) is RECIPES[wanted]
    assert find_recipe(model, dataset, "dgnet_regnet") is RECIPES["dgnet_regnet"]


def test_the_small_recipe_trains_without_dropout_and_average():
    recipe = RECIPES["cifar_small"]
    wanted = dict(lr=0.1, batch=128, epochs=10, weight_decay=5e-4, optimizer="sgd", dropout=0)
    wanted |= dict(decay_norms=True, ema_decay=None, image_size=32, augmentation="padded_crop")
    assert {key: getattr(recipe, key) for key in wanted} == wanted
    assert recipe.with_changes().warmup_epochs == 1
    assert recipe.with_changes(epochs=100).warmup_epochs == 5


@pytest.mark.slow
def test_every_model_has_a_recipe_for_folders_that_its_classifier_takes():
    for model in list_models():
        recipe = find_recipe(model, "folder")
        with torch.device("meta"):
            build_classifier(model, 3, recipe)
    with pytest.raises(
        ValueError, match="dgnet_r50 has no default recipe for cifar10.*aognet_cifar"
    ):
        find_recipe("dgnet_r50", "cifar10")
    with pytest.raises(ValueError, match="no recipe named 'fast'.*dgnet_regnet"):
        find_recipe("dgnet_r50", "folder", "fast")


def test_the_learning_rate_follows_the_batch_and_the_warm_up_the_length():
    recipe = RECIPES["aognet_imagenet"]
    assert recipe.scaled_lr(256) == pytest.approx(0.1)
    assert RunConfig("aognet_4m", "folder", recipe, 10, 256).peak_lr == pytest.approx(0.1)
    assert RunConfig("aognet_4m", "folder", recipe, 10, 256, lr=0.3).peak_lr == 0.3
    assert recipe.with_changes(epochs=20).warmup_epochs == 2
    longer = recipe.with_changes(epochs=250, image_size=192, ema=False)
    assert (longer.epochs, longer.warmup_epochs) == (250, 5)
    assert (longer.image_size, longer.ema_decay) == (192, None)
    assert recipe.with_changes() == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (dict(epochs=0), "epochs is 0; it must be positive"),
        (dict(lr=float("nan")), "lr is nan"),
        (dict(warmup_epochs=120), "warmup_epochs is 120; it must be at least 0 and below 120"),
        (dict(dropout=1.0), "dropout is 1.0; it must be at least 0 and below 1"),
        (dict(augmentation="none"), "augmentation is 'none'; allowed are .*padded_crop"),
    ),
)
def test_an_impossible_recipe_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["aognet_imagenet"], **change)


def test_the_schedule_warms_up_and_ends_at_zero():
    recipe = Recipe("test", lr=0.4, batch=1024, epochs=12, weight_decay=0, warmup_epochs=2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.4)
    scheduler = build_scheduler(optimizer, recipe, 0.4, updates=10)
    rates = []
    for update in range(1, 121):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update)
    assert rates[0] == pytest.approx(0.1)  # that of 256 images
    assert rates[10] == pytest.approx(0.25) and rates[20] == pytest.approx(0.4)
    assert rates[70] == pytest.approx(0.2)
    assert rates[119] == pytest.approx(0.2 * (1 + math.cos(math.pi * 99 / 100)))
    assert optimizer.param_groups[0]["lr"] == 0


def decays(model, name):
    """Weight decay of every parameter under a recipe, by name, and the optimiser."""
    optimizer = build_optimizer(model, RECIPES[name], 0.1)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    by_id = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    return {n: by_id[id(p)] for n, p in model.named_parameters()}, optimizer


def test_weight_decay_spares_only_what_the_paper_says():
    model = create_model("dgnet_r18", num_classes=3)
    found, optimizer = decays(model, "dgnet_resnet")
    assert optimizer.param_groups[0]["nesterov"]
    norms = {n for n in found if "bn" in n or "downsample.1" in n}
    assert norms and {n for n, decay in found.items() if not decay} == norms
    assert {found[n] for n in found if n.startswith("graphs.")} == {1e-4}
    found, optimizer = decays(create_model("aognet_4m"), "aognet_imagenet")
    assert set(found.values()) == {1e-4} and not optimizer.param_groups[0]["nesterov"]


@pytest.mark.grid
@pytest.mark.parametrize("name", ("dgnet_r18", "dgnet_r50"))
def test_resnets_start_as_goyal_et_al(name):
    model = build_classifier(name, 100, RECIPES["dgnet_resnet"])
    last = "bn2.weight" if name == "dgnet_r18" else "bn3.weight"
    scales = {n: p for n, p in model.named_parameters() if ".bn" in n and n.endswith("weight")}
    assert all((p == (0 if n.endswith(last) else 1)).all() for n, p in scales.items())
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    loss = model(torch.randn(2, 3, 64, 64)).square().mean()
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if n.endswith(last)}
    assert all(g.any() for g in gradients.values())
    with pytest.raises(ValueError, match="ResNets and ResNeXts"):
        build_classifier("aognet_4m", 10, RECIPES["dgnet_resnet"])


def test_dropout_goes_where_the_networks_have_it():
    recipe = replace(RECIPES["aognet_cifar"], dropout=0.25)
    model = build_classifier("dgnet_mobilenet_v2", 3, recipe)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]
    model = build_classifier("aognet_cifar_pruned", 3, recipe)
    rates = [
        {op.dropout for op in stage.modules() if isinstance(op, NodeOperation)}
        for stage in (model.res2, model.res3, model.res4)
    ]
    assert rates == [{0.0}, {0.25}, {0.25}]
    with pytest.raises(
        ValueError, match="dropout is 0.25; it must be 0, as dgnet_r18 has no such layer"
    ):
        build_classifier("dgnet_r18", 3, recipe)


def test_images_smaller_than_the_stride_are_refused():
    recipe = RECIPES["aognet_imagenet"].with_changes(image_size=31)
    with pytest.raises(ValueError, match="image_size is 31; aognet_4m needs at least 32"):
        build_classifier("aognet_4m", 3, recipe)


def test_images_are_normalised_as_the_network_says():
    plain = Image.new("RGB", (300, 200), (125, 123, 114))
    for augmentation in ("resized_crop", "padded_crop"):
        recipe = replace(RECIPES["aognet_cifar"], augmentation=augmentation, image_size=24)
        image = build_transform(recipe, CIFAR_RGB, training=False)(plain)
        assert image.shape == (3, 24, 24) and image.abs().max() < 0.01
        assert build_transform(recipe, CIFAR_RGB, training=True)(plain).shape == (3, 24, 24)
    with pytest.raises(ValueError, match="channel_order is 'BGR'; it must be 'RGB'"):
        build_transform(recipe, Preprocessing((0,) * 3, (1,) * 3, "BGR"), training=False)


def test_the_padded_crop_moves_by_up_to_four_pixels_and_flips():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[16, 10] = 255
    transform = build_transform(RECIPES["aognet_cifar"], CIFAR_RGB, training=True)
    places = set()
    for _ in range(300):
        y, x = divmod(transform(Image.fromarray(picture))[0].argmax().item(), 32)
        places.add((y, x))
    assert {y for y, _ in places} == set(range(12, 21))
    assert {x for _, x in places} == {*range(6, 15), *range(17, 26)}  # 10 and 21 in the mirror


def test_the_centre_crop_of_imagenet_is_seven_eighths():
    picture = Image.new("RGB", (256, 256), (255, 255, 255))
    picture.paste((0, 0, 0), (16, 16, 240, 240))
    whole = build_transform(RECIPES["aognet_imagenet"], IMAGENET_RGB, training=False)(picture)
    assert whole.shape == (3, 224, 224) and (whole < 0).all()  # the white rim is cut off


def test_all_processes_together_evaluate_every_image_once():
    images = [(torch.tensor([float(i)]), i) for i in range(7)]
    seen = [
        label
        for rank in range(3)
        for _, labels in evaluation_loader(images, 2, rank=rank, count=3)
        for label in labels.tolist()
    ]
    assert sorted(seen) == list(range(7))


def test_the_training_order_is_a_function_of_seed_and_epoch():
    images = [(torch.tensor([float(i)]), i) for i in range(20)]

    def order(seed, epoch, rank=0, count=1):
        loader = training_loader(images, 4, seed=seed, rank=rank, count=count)
        loader.sampler.set_epoch(epoch)
        return [label for _, labels in loader for label in labels.tolist()]

    assert order(0, 1) == order(0, 1) != order(0, 2) != order(1, 2)
    assert not {*order(0, 1, 0, 2)} & {*order(0, 1, 1, 2)}
    assert len(order(0, 1, 0, 2)) == 8  # the batch that is not full is left out
    with pytest.raises(ValueError, match="20 training images do not fill one batch of 24"):
        training_loader(images, 12, seed=0, rank=0, count=2)


def write_cifar(root, monkeypatch):
    """CIFAR-10 in the form of its files, with ten images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for name, labels in (("data_batch_1", range(10)), ("test_batch", range(5))):
        pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3072), np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(labels)}))
    classes = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    for file in folder.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    cifar = datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["batches.meta"]})


def test_cifar_is_read_from_its_files(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    train, val = open_datasets(tmp_path, "cifar10", RECIPES["aognet_cifar"], CIFAR_RGB)
    assert (len(train), len(val), len(train.classes)) == (10, 5, 10)
    image, label = val[3]
    assert image.shape == (3, 32, 32) and label == 3
    pixels = torch.from_numpy(val.data[3]).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (CIFAR_RGB.mean, CIFAR_RGB.std))
    torch.testing.assert_close(image, (pixels - mean) / std, rtol=0, atol=1e-5)
