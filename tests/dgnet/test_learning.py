"""A DG-Net trained from scratch for a minute evaluates as it was trained."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from gram_backbones import create_model
from gram_backbones.dgnet.connectivity import summarise
from gram_backbones.dgnet.graph import record_connectivity, training_gate

SHAPES = ("disc", "ring", "square", "frame", "cross", "bars", "columns", "checks")


def draw(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of random size, place and colour on noise: ``(count, 3, 32, 32)`` and labels."""
    labels = torch.randint(len(SHAPES), (count,), generator=generator)
    place = torch.rand(count, 3, 1, 1, generator=generator)
    axis = torch.arange(32.0)
    radius = 5 + 6 * place[:, 2]
    y = (axis[:, None] - 10 - 12 * place[:, 0]) / radius
    x = (axis[None, :] - 10 - 12 * place[:, 1]) / radius
    far, near = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    square, distance = far < 0.9, (x**2 + y**2).sqrt()
    rows, columns = (4 * y).floor() % 2 == 0, (4 * x).floor() % 2 == 0
    masks = torch.stack(
        [
            distance < 1,
            (distance < 1) & (distance > 0.6),
            square,
            square & (far > 0.55),
            square & (near < 0.25),
            square & rows,
            square & columns,
            square & (rows ^ columns),
        ],
        1,
    )
    mask = masks[torch.arange(count), labels][:, None].float()
    colours = 1 + torch.rand(count, 3, 1, 1, generator=generator)
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return 2 * colours * mask - 1 + 0.3 * noise, labels


def train(model: torch.nn.Module, updates: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, updates, pct_start=0.1)
    for _ in range(updates):
        images, labels = draw(64, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def top1(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    found = torch.cat([model(part) for part in images.split(200)]).argmax(1)
    return 100 * (found == labels).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("gate", ("straight_through", "paper"))
def test_a_network_from_scratch_evaluates_as_it_was_trained(gate):
    """The paper's gate does not, from the paper's start: so this test can fail."""
    options = dict(gate="paper", side_bias=3.0) if gate == "paper" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model("dgnet_cifar_r20", num_classes=len(SHAPES), **options)
    generator = torch.Generator().manual_seed(0)
    train(model, 200, generator)
    images, labels = draw(1000, generator)
    in_training = top1(model, images, labels)  # statistics of the batch, training's gate
    model.eval()
    with record_connectivity(model) as records:
        evaluated = top1(model, images, labels)
    with training_gate(model):
        as_trained = top1(model, images, labels)
    shares = summarise(records)
    print(gate, in_training, as_trained, evaluated, shares)  # shown where the test fails
    if gate == "paper":
        assert evaluated < as_trained - 10
        return
    assert evaluated > 85 and abs(evaluated - in_training) < 3
    assert abs(evaluated - as_trained) <= 0.3
    assert shares["closed_edges"] > 0
