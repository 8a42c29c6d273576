"""FGSM through Foolbox against a step made by hand; the tool on a folder of images."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

pytest.importorskip("foolbox", reason="Foolbox is not installed")

from gram_backbones import create_model
from gram_backbones.classification.robustness import (
    load_classifier,
    open_image_folder,
    top1_under_fgsm,
)
from gram_backbones.preprocessing import IMAGENET_RGB, Preprocessing

TOOL = Path(__file__).resolve().parents[2] / "tools/eval_robustness.py"
RGB = Preprocessing((120.0, 60.0, 90.0), (50.0, 40.0, 30.0), "RGB")
BGR = Preprocessing((90.0, 60.0, 120.0), (30.0, 40.0, 50.0), "BGR")


def tiny(classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)
    )


def normalised(images, preprocessing):
    images = images.flip(1) if preprocessing.channel_order == "BGR" else images
    mean, std = torch.tensor([preprocessing.mean, preprocessing.std])[:, :, None, None]
    return (255 * images - mean) / std


def fgsm(model, preprocessing, images, labels, epsilon):
    """The fast gradient sign step written out, clipped to the range of images."""
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        F.cross_entropy(model(normalised(x, preprocessing)), labels), x
    )
    return (images + epsilon * gradient.sign()).clip(0, 1)


def top1(model, images, labels):
    return (model(images).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("preprocessing", (RGB, BGR), ids=lambda p: p.channel_order)
def test_the_attack_is_one_signed_step_on_images_in_0_1(preprocessing):
    model = tiny()
    images, labels = torch.rand(40, 3, 8, 8), torch.randint(3, (40,))
    expected = {e: fgsm(model, preprocessing, images, labels, e) for e in (0.1, 0.3)}
    assert any((e.min() == 0) & (e.max() == 1) for e in expected.values())  # clipping matters
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    result = top1_under_fgsm(model, preprocessing, [(images, labels)], [0.1, 0.3])
    for step in expected.values():
        wanted = normalised(step, preprocessing)
        assert min((x - wanted).abs().max() for x in seen) < 1e-4
    clean, *attacked = (
        top1(model, normalised(x, preprocessing), labels) for x in (images, *expected.values())
    )
    assert (result.images, result.clean) == (40, pytest.approx(clean))
    assert result.attacked == pytest.approx(attacked)


def trained_linear(images, labels):
    """A linear classifier of normalised images: FGSM is its worst case, at any epsilon."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(normalised(images, IMAGENET_RGB)), labels).backward()
        optimizer.step()
    return model


def test_accuracy_falls_with_epsilon_and_starts_at_the_clean_one():
    labels = torch.arange(200) % 2
    images = (0.3 + 0.15 * labels[:, None, None, None] + 0.2 * torch.rand(200, 3, 6, 6)).clip(0, 1)
    model = trained_linear(images, labels)
    batches = list(zip(images.split(64), labels.split(64)))
    epsilons = (0.0, 0.02, 0.05, 0.08, 0.1, 0.3)
    result = top1_under_fgsm(model, IMAGENET_RGB, batches, epsilons)
    assert result.images == 200
    assert result.clean > 0.95
    assert result.attacked[0] == result.clean
    assert result.attacked == sorted(result.attacked, reverse=True)
    assert result.attacked[-1] < 0.05


@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18", "dgnet_mobilenet_v2"))
def test_networks_are_attacked_in_eval_mode_without_gradients_in_their_parameters(name):
    model = create_model(name, num_classes=3).train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    batch = torch.rand(2, 3, 64, 64), torch.tensor([0, 2])
    first = top1_under_fgsm(model, IMAGENET_RGB, [batch], [0.1, 0.0])
    assert first.attacked[1] == first.clean
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="no images"):
        top1_under_fgsm(tiny(), RGB, [], [0.1])


# The tool


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images, wider than high."""
    for label, colour in (("cat", (200, 40, 40)), ("dog", (40, 40, 200))):
        (tmp_path / "val" / label).mkdir(parents=True)
        for i in range(3):
            shade = tuple(value + 10 * i for value in colour)
            Image.new("RGB", (96, 72), shade).save(tmp_path / "val" / label / f"{i}.png")
    return tmp_path / "val"


def save(model, path, **others):
    torch.save({"state_dict": model.state_dict(), **others}, path)
    return path


def run_tool(monkeypatch, capsys, *arguments):
    """What the tool prints, or the sentence that it stops with."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as stop:
        return str(stop)
    return capsys.readouterr().out


def test_images_are_resized_cropped_and_left_in_0_1(folder):
    images = open_image_folder(folder, size=64)
    assert images.classes == ["cat", "dog"] and len(images) == 6
    image, label = images[0]
    assert image.shape == (3, 64, 64) and label == 0
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([200, 40, 40]) / 255)
    assert open_image_folder(folder).transform.transforms[0].size == 256


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("name", ("aognet_4m", "dgnet_r18"))
def test_the_tool_prints_a_row_per_epsilon(name, folder, tmp_path, monkeypatch, capsys):
    model = create_model(name, num_classes=2).eval()
    checkpoint = save(model, tmp_path / "w.pth", epoch=1)
    size = ("--size", 64, "--batch-size", 4, "--workers", 0)
    out = run_tool(
        monkeypatch, capsys, name, folder, "--checkpoint", checkpoint, "--epsilons", 0, 0.25, *size
    )
    assert f"{name} on 6 images of 2 classes" in out
    rows = dict(re.findall(r"^\| (clean|[\d.]+) +\| ([\d.]+) +\|$", out, re.MULTILINE))
    assert list(rows) == ["clean", "0.0", "0.25"]
    images = open_image_folder(folder, size=64)
    x, labels = torch.stack([x for x, _ in images]), torch.tensor([y for _, y in images])
    with torch.no_grad():
        wanted = top1(model, normalised(x, model.variant.preprocessing), labels)
    assert rows["clean"] == rows["0.0"] == f"{100 * wanted:.2f}"


def test_weights_are_the_checkpoint_s(tmp_path):
    for name in ("aognet_4m", "dgnet_mobilenet_v2"):
        model = create_model(name, num_classes=4)
        loaded = load_classifier(name, save(model, tmp_path / "w.pth"), 4)
        state = loaded.state_dict()
        assert all(torch.equal(value, state[n]) for n, value in model.state_dict().items())


def test_epsilons_are_checked_before_any_file_is_read(monkeypatch, capsys):
    for epsilon in ("-0.1", "8", "nan"):
        message = run_tool(
            monkeypatch, capsys, "aognet_4m", "none", "--checkpoint=none", f"--epsilons={epsilon}"
        )
        assert f"epsilon is {float(epsilon)}; allowed are 0 to 1" in message


def test_bad_folders_are_one_sentence(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare/cat").mkdir(parents=True)
    for arguments, words in (
        ([tmp_path / "gone"], f"there is no folder {tmp_path / 'gone'}"),
        ([tmp_path / "empty"], f"{tmp_path / 'empty'} must contain one folder of images per class"),
        ([tmp_path / "bare"], f"{tmp_path / 'bare'} must contain one folder of images per class"),
        ([folder, "--resize", 100], "size is 224; allowed are 1 to 100"),
    ):
        message = run_tool(monkeypatch, capsys, "aognet_4m", *arguments, "--checkpoint", "none")
        assert words in message and "\n" not in message, message


@pytest.mark.grid
@pytest.mark.parametrize("damage", ("classes", "missing", "no file", "base"))
def test_checkpoints_that_do_not_fit_are_refused(damage, folder, tmp_path, monkeypatch, capsys):
    name = "dgnet_r18"
    path = tmp_path / "w.pth"
    state = create_model(name, num_classes=5 if damage == "classes" else 2).state_dict()
    if damage == "missing":
        del state["layer2.0.conv1.weight"]
    elif damage == "base":
        state = {n: v for n, v in state.items() if not n.startswith("graphs.")}
    if damage != "no file":
        torch.save(state, path)
    message = run_tool(monkeypatch, capsys, name, folder, "--checkpoint", path)
    words = {
        "classes": f"the classifier in {path} has 5 classes, but the images have 2",
        "missing": "layer2.0.conv1.weight",
        "no file": str(path),
        "base": f"{path} holds only the base network",
    }[damage]
    assert message.startswith("eval_robustness.py: ") and words in message, message


@pytest.mark.slow
def test_absent_foolbox_is_one_clear_sentence():
    code = (
        "import sys; sys.modules['foolbox'] = None; import gram_backbones.classification.robustness"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert (
        "gram_backbones.classification.robustness needs Foolbox" in last
        and "pip install foolbox" in last
    )
