"""A small network, folders of drawn shapes, and the tool called in this process."""

import importlib.util
import random
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw

from gram_backbones.classification.building import RunConfig
from gram_backbones.classification.data import open_datasets
from gram_backbones.classification.engine import Trainer
from gram_backbones.classification.processes import Processes
from gram_backbones.classification.recipes import RECIPES
from gram_backbones.preprocessing import CIFAR_RGB
from tests.conftest import ROOT

TOOL = ROOT / "tools/train_classifier.py"
CPU = Processes(0, 1, torch.device("cpu"))
SHAPES = ("bar", "box", "disc", "ring")


def draw(shape, rng):
    """A picture of 32 pixels with one bright shape on a dark ground."""
    image = Image.new("RGB", (32, 32), tuple(rng.randrange(100) for _ in range(3)))
    pen, colour = ImageDraw.Draw(image), tuple(rng.randrange(150, 256) for _ in range(3))
    r, x, y = rng.uniform(7, 11), rng.uniform(12, 20), rng.uniform(12, 20)
    if shape == "bar":
        pen.rectangle((x - r, y - 2, x + r, y + 2), colour)
    elif shape == "box":
        pen.rectangle((x - r, y - r, x + r, y + r), colour)
    elif shape == "disc":
        pen.ellipse((x - r, y - r, x + r, y + r), colour)
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=2)
    return image


def make_folder(root, train, val):
    """A folder of drawn shapes, ``train`` and ``val`` pictures of each."""
    rng = random.Random(0)
    for split, count in (("train", train), ("val", val)):
        for shape in SHAPES:
            folder = root / split / shape
            folder.mkdir(parents=True)
            for i in range(count):
                draw(shape, rng).save(folder / f"{i}.png")
    return root


def tiny_recipe(**changes):
    recipe = replace(RECIPES["aognet_cifar"], image_size=16, epochs=2, warmup_epochs=0.5)
    return replace(recipe, **changes)


def trainer(root, output, recipe, *, batch=8, lr=0.1, resume=None, **changes):
    train, val = open_datasets(root, "folder", recipe, CIFAR_RGB)
    config = RunConfig("aognet_tiny", "folder", recipe, 4, batch, lr=lr, **changes)
    return Trainer(config, train, val, output, CPU, resume=resume)


def same(a, b):
    """Whether two checkpoints have equal values, the speed of training and the seed aside."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        aside = {"images_per_second", "seconds", "seed"}
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a.keys() - aside)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def load_tool(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(tool, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", *map(str, arguments)])
    tool.main()


def refused(tool, monkeypatch, *arguments):
    """The one sentence that the tool stops with; python exits with 1 for a text."""
    with pytest.raises(SystemExit) as stopped:
        call(tool, monkeypatch, *arguments)
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    return stopped.value.code
