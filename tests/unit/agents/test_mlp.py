"""Perceptrons against torch.nn's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fabric_ppo.agents.mlp import MLP, ROW_MULTIPLE
from tests.fixtures.networks import ACTIVATIONS, SHAPES, in_sequential, make_mlp
from tests.fixtures.spaces import BOX, observe


@SHAPES
@ACTIVATIONS
def test_layers(hidden_sizes, activation):
    network = make_mlp(hidden_sizes, activation)
    widths = [5, *hidden_sizes, 2]
    assert [(layer.in_features, layer.out_features) for layer in network.linear_layers] == [
        (widths[k], widths[k + 1]) for k in range(len(widths) - 1)
    ]
    between = [layer for layer in network if not isinstance(layer, nn.Linear)]
    assert len(between) == len(hidden_sizes)
    assert all(isinstance(layer, {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]) for layer in between)


@SHAPES
@ACTIVATIONS
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_forward_with_and_without_gradients(hidden_sizes, activation, rows):
    network = make_mlp(hidden_sizes, activation)
    features = torch.randn(rows, 5, dtype=torch.float64)
    before = features.clone()
    expected = in_sequential(network)(features)
    assert torch.equal(network(features), expected)
    with torch.no_grad():
        torch.testing.assert_close(network(features), expected.detach(), rtol=1e-14, atol=1e-14)
    assert torch.equal(features, before)


def test_layer_norm_lies_between_product_and_activation():
    """(x - mean) / sqrt(var + 1e-5), the layer's own variance without correction."""
    network = MLP(5, (4, 3), 2, "tanh", layer_norm=True)
    values = observe(BOX, 6, seed=0).double()
    network.double()
    first, second, last = network.linear_layers
    for layer in (first, second):
        values = values @ layer.weight.T + layer.bias
        values = (values - values.mean(1, keepdim=True)) / (values.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        values = values.tanh()
    torch.testing.assert_close(network(observe(BOX, 6, seed=0).double()), values @ last.weight.T + last.bias)


@pytest.mark.parametrize("inputs", [3, 5, 7, 9, 17, 30])
@pytest.mark.parametrize("outputs", [1, 2, 4, 6, 8])
@torch.no_grad()
def test_a_row_has_the_same_bits_wherever_it_lies_in_a_batch_that_acts(inputs, outputs):
    """With inputs of all widths, so that rows begin at any multiple of four bytes."""
    torch.manual_seed(inputs)
    network, rows = MLP(inputs, (8,), outputs, "tanh"), torch.randn(64, inputs)
    together = network(rows)
    for first in (0, 1, 2, 3, 13, 40):
        assert torch.equal(network(rows[first : first + ROW_MULTIPLE].clone()), together[first : first + ROW_MULTIPLE])
