"""Connectivity over many images, in numbers."""

import pytest
import torch

from gram_backbones import DGNet, create_model, record_connectivity
from gram_backbones.dgnet.connectivity import dynamic_stages, summarise


def test_closed_edges_and_blocks_are_counted_by_hand():
    everything = torch.ones(3, 4, 4).tril(-1)  # two blocks, six edges
    one = everything.clone()
    one[0, 2, :] = 0  # nothing into block 2 of the first image
    one[1, :, 1] = 0  # nothing out of block 1 of the second: it is computed
    one[2, 3, 0] = 0  # one edge of the third, past both blocks
    assert summarise({"stage": [everything]}) == dict(closed_edges=0, closed_blocks=0)
    assert summarise({"stage": [one]}) == dict(closed_edges=5 / 18, closed_blocks=1 / 6)
    longer = torch.zeros(1, 5, 5)  # three blocks, ten edges, all closed
    found = summarise({"a": [everything, one], "b": [longer]})
    assert found == dict(closed_edges=15 / 46, closed_blocks=4 / 15)
    with pytest.raises(ValueError, match="no images"):
        summarise({"stage": [torch.zeros(0, 4, 4)]})


def test_a_network_whose_routers_are_shut_is_closed_all_over():
    """One edge per stage stays open, so that the output is not empty; no block is used."""
    model = create_model("dgnet_cifar_r20", num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    for threshold, edges, blocks in ((0.0, 0.0, 0.0), (2.0, 9 / 10, 1.0)):
        for graph in model.graphs.values():
            torch.nn.init.constant_(graph.thresholds, threshold)
        with torch.no_grad(), record_connectivity(model) as records:
            model(images)
        assert summarise(records) == pytest.approx(dict(closed_edges=edges, closed_blocks=blocks))


def test_only_edges_that_depend_on_the_image_are_dynamic():
    names = ["graphs.0", "graphs.1", "graphs.2"]
    assert dynamic_stages(DGNet("dgnet_cifar_r20")) == names
    assert not dynamic_stages(DGNet("dgnet_cifar_r20", edges="static"))
    assert not dynamic_stages(create_model("aognet_cifar_s_full"))
