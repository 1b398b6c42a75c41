"""All weights of a module as one vector."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fabric_ppo.agents.mlp import MLP
from fabric_ppo.fast.flat_weights import FlatWeights


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
    with torch.no_grad():
        weights.flat.mul_(1.5)
    assert_acts_with(module, weights, free)
    weights.to(torch.float32)
    with torch.no_grad():
        weights.flat.add_(0.25)
    assert_acts_with(module, weights, free)


def test_gradients_reach_flat(linked):
    _, weights, free = linked
    features = torch.randn(8, 5)
    weights(features).square().sum().backward()
    free(features).square().sum().backward()
    torch.testing.assert_close(weights.flat.grad, torch.cat([p.grad.flatten() for p in free.parameters()]))
