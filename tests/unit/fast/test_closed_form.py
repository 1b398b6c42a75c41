"""A perceptron's passes in closed form against autograd through torch.nn's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fabric_ppo.agents.mlp import MLP
from fabric_ppo.fast.array_actor import array_forward
from fabric_ppo.fast.closed_form import ClosedForm
from tests.fixtures.networks import ACTIVATIONS, SHAPES, in_sequential, make_mlp


def weights_of(network):
    """Weight and bias of each layer, from the inputs to the outputs."""
    return [tensor for layer in network.linear_layers for tensor in (layer.weight, layer.bias)]


@SHAPES
@ACTIVATIONS
def test_layer_values(hidden_sizes, activation):
    """Inputs of every linear layer, then the outputs."""
    network = make_mlp(hidden_sizes, activation)
    value = torch.randn(9, 5, dtype=torch.float64)
    with torch.no_grad():
        got = ClosedForm(network).layer_values(value)
        expected = []
        for layer in network:
            if isinstance(layer, nn.Linear):
                expected.append(value)
            value = layer(value)
        expected.append(value)
    assert len(got) == len(expected) == len(hidden_sizes) + 2
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


@SHAPES
@ACTIVATIONS
@pytest.mark.parametrize("rows", [0, 9, 1024])
def test_backward_into(hidden_sizes, activation, rows):
    network = make_mlp(hidden_sizes, activation)
    features, grad_out = (torch.randn(rows, size, dtype=torch.float64) for size in (5, 2))
    expected = torch.autograd.grad(in_sequential(network)(features), weights_of(network), grad_out)
    with torch.no_grad():
        closed_form = ClosedForm(network)
        values = closed_form.layer_values(features)
        kept = [each.clone() for each in (*values, grad_out)]
        got = [torch.full_like(weight, torch.nan) for weight in weights_of(network)]
        closed_form.backward_into(got, values, grad_out)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*values, grad_out), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_exact_to_rounding(dtype):
    """From far in the tails to next to zero, the absolute error is that of rounding a number near one."""
    network = MLP(1, (1,), 1, "tanh").to(dtype)
    with torch.no_grad():
        network.linear_layers[0].weight.fill_(1.0)
        network.linear_layers[0].bias.fill_(0.0)
        inputs = torch.cat([torch.linspace(-100, 100, 4001), torch.logspace(-30, 0, 500), torch.tensor([0.0])])
        inputs = inputs.to(dtype).unsqueeze(-1)
        both = ClosedForm(network).layer_values(inputs)[1], network[1](network[0](inputs))
    for got in both:
        assert (got - torch.tanh(inputs.double())).abs().max() <= 2 * torch.finfo(dtype).eps
        assert got.abs().max() <= 1


@ACTIVATIONS
@pytest.mark.parametrize("hidden_sizes", [(7,), (6, 4)], ids=str)
def test_hidden_layers_alone(hidden_sizes, activation):
    """A trunk: values, gradients of weights and of features, and the same in NumPy."""
    torch.manual_seed(0)
    network = MLP(5, hidden_sizes, 0, activation).double()
    features = torch.randn(16, 5, dtype=torch.float64, requires_grad=True)
    out = in_sequential(network)(features)
    grad_out = torch.randn_like(out)
    *expected, expected_features = torch.autograd.grad(out, [*weights_of(network), features], grad_out)
    with torch.no_grad():
        closed_form = ClosedForm(network)
        values = closed_form.layer_values(features)
        kept = [each.clone() for each in (*values, grad_out)]
        got = [torch.full_like(weight, torch.nan) for weight in weights_of(network)]
        got_features = closed_form.grad_features(closed_form.backward_into(got, values, grad_out))
        in_numpy = array_forward(network)(features.detach().numpy())
    torch.testing.assert_close(values[-1], out, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(torch.from_numpy(in_numpy), out.detach(), rtol=1e-13, atol=1e-14)
    for a, b in zip((*got, got_features), (*expected, expected_features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*values, grad_out), strict=True))
