"""Perceptrons against torch.nn's own, and all weights as one vector."""

import copy

import pytest
import torch
from torch import nn

from fabric_ppo.agents.mlp import MLP
from fabric_ppo.fast.flat_weights import FlatWeights

SHAPES = pytest.mark.parametrize("hidden_sizes", [(16, 4), (), (3,), (4, 5), (6, 2, 3)], ids=str)
ACTIVATIONS = pytest.mark.parametrize("activation", ["relu", "tanh"])


def plain(network):
    """The same layers in torch.nn's own Sequential."""
    return nn.Sequential(*network)


def make(hidden_sizes, activation):
    torch.manual_seed(len(hidden_sizes))
    return MLP(5, hidden_sizes, 2, activation).double()


@SHAPES
@ACTIVATIONS
def test_layers(hidden_sizes, activation):
    network = make(hidden_sizes, activation)
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
    network = make(hidden_sizes, activation)
    features = torch.randn(rows, 5, dtype=torch.float64)
    before = features.clone()
    expected = plain(network)(features)
    assert torch.equal(network(features), expected)
    with torch.no_grad():
        torch.testing.assert_close(network(features), expected.detach(), rtol=1e-14, atol=1e-14)
    assert torch.equal(features, before)


@SHAPES
@ACTIVATIONS
def test_layer_values(hidden_sizes, activation):
    """Inputs of every linear layer, then the outputs."""
    network = make(hidden_sizes, activation)
    value = torch.randn(9, 5, dtype=torch.float64)
    with torch.no_grad():
        got = network.closed_form().layer_values(value)
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
    network = make(hidden_sizes, activation)
    features, grad_out = (torch.randn(rows, size, dtype=torch.float64) for size in (5, 2))
    expected = torch.autograd.grad(plain(network)(features), network.weights, grad_out)
    with torch.no_grad():
        closed_form = network.closed_form()
        values = closed_form.layer_values(features)
        kept = [each.clone() for each in (*values, grad_out)]
        got = [torch.full_like(weight, torch.nan) for weight in network.weights]
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
        both = network.closed_form().layer_values(inputs)[1], network[1](network[0](inputs))
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
    out = plain(network)(features)
    grad_out = torch.randn_like(out)
    *expected, expected_features = torch.autograd.grad(out, [*network.weights, features], grad_out)
    with torch.no_grad():
        closed_form = network.closed_form()
        values = closed_form.layer_values(features)
        kept = [each.clone() for each in (*values, grad_out)]
        got = [torch.full_like(weight, torch.nan) for weight in network.weights]
        got_features = closed_form.grad_features(closed_form.backward_into(got, values, grad_out))
        in_numpy = network.frozen()(features.detach().numpy())
    torch.testing.assert_close(values[-1], out, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(torch.from_numpy(in_numpy), out.detach(), rtol=1e-13, atol=1e-14)
    for a, b in zip((*got, got_features), (*expected, expected_features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*values, grad_out), strict=True))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy = MLP(5, (4, 3), 2, "tanh")
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, features):
        return self.policy(features) * self.scale


@pytest.fixture
def linked():
    """A module, the FlatWeights that took it over, and a copy of the module that nobody took over."""
    torch.manual_seed(7)
    module = Pair()
    free = copy.deepcopy(module)
    return module, FlatWeights(module), free


def test_flat_is_the_only_parameter(linked):
    module, weights, free = linked
    assert [name for name, _ in weights.named_parameters()] == ["flat"]
    assert weights.flat.numel() == sum(parameter.numel() for parameter in free.parameters())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_names_and_values_of_the_module_stay(linked):
    module, _, free = linked
    got, want = module.state_dict(), free.state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_views_are_parts_in_order(linked):
    _, weights, _ = linked
    count = torch.arange(weights.flat.numel())
    views = weights.views(count)
    assert torch.equal(torch.cat([view.flatten() for view in views.values()]), count)
    with pytest.raises((ValueError, RuntimeError)):
        weights.views(count[:-1])


def assert_acts_with(module, weights, free):
    """The module acts as a free one does whose weights are read from `flat`."""
    free.to(weights.flat.dtype)
    free.load_state_dict({name: view.detach() for name, view in weights.views(weights.flat).items()})
    features = torch.randn(8, 5, dtype=weights.flat.dtype)
    expected = free(features).detach()
    torch.testing.assert_close(module(features), expected)
    with torch.no_grad():
        torch.testing.assert_close(module(features), expected)
    torch.testing.assert_close(weights(features).detach(), expected)


def test_module_follows_an_optimizer_on_flat(linked):
    module, weights, free = linked
    features = torch.randn(8, 5)
    before = module(features)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.1, fused=True)
    weights(features).sum().backward()
    optimizer.step()
    assert not torch.isclose(before, module(features)).any()
    assert_acts_with(module, weights, free)


def test_loading_into_the_module_writes_flat(linked):
    module, weights, free = linked
    changed = {name: value + 1 for name, value in free.state_dict().items()}
    module.load_state_dict(changed)
    assert torch.equal(weights.flat.data, torch.cat([value.flatten() for value in changed.values()]))


def test_another_type_keeps_the_link(linked):
    module, weights, free = linked
    nn.Sequential(weights).double()
    assert {parameter.dtype for parameter in (*module.parameters(), weights.flat)} == {torch.float64}
    assert weights.gradient()[0].dtype == torch.float64
    with torch.no_grad():
        weights.flat.mul_(1.5)
    assert_acts_with(module, weights, free)
    weights.to(torch.float32)
    with torch.no_grad():
        weights.flat.add_(0.25)
    assert_acts_with(module, weights, free)


def test_gradient_memory_by_submodule(linked):
    _, weights, _ = linked
    gradient, parts = weights.gradient()
    assert gradient.shape == weights.flat.shape
    assert set(parts) == {"policy", "scale"}
    for name, part in parts.items():
        for number, view in enumerate(part):
            view.fill_(number + (10 if name == "scale" else 0))
    expected = {
        name: torch.full_like(view, 10 if name == "scale" else int(name.split(".")[1]) + (name.endswith("bias")))
        for name, view in weights.views(gradient).items()
    }
    assert all(torch.equal(view, expected[name]) for name, view in weights.views(gradient).items())


def test_gradients_reach_flat(linked):
    _, weights, free = linked
    features = torch.randn(8, 5)
    weights(features).square().sum().backward()
    free(features).square().sum().backward()
    torch.testing.assert_close(weights.flat.grad, torch.cat([p.grad.flatten() for p in free.parameters()]))
