"""All weights of a module as one vector."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fabric_ppo.agents.mlp import MLP
from fabric_ppo.fast.flat_weights import FlatWeights, require_all_held, split_weights
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.loss import minibatch_loss
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.agents import build_agent
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS
from tests.fixtures.updates import CONFIG, coefs_of


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
    assert all(parameter.requires_grad for parameter in module.parameters())


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


def descend(module, owner, optimizer, features):
    for _ in range(3):
        optimizer.zero_grad()
        owner(features).square().sum().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()


OPTIMIZERS = {
    "Adam": torch.optim.Adam,
    "AdamW fused": lambda groups: torch.optim.AdamW(groups, fused=True, weight_decay=0.3),
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.3),
    "RMSprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("is_early", [False, True], ids=["made after", "made before"])
def test_an_optimizer_of_the_modules_own_parameters_trains_as_without_a_vector(name, is_early):
    """With a rate for each group; PyTorch alone is the expectation."""
    torch.manual_seed(7)
    module = Pair()
    free = copy.deepcopy(module)

    def make(owner):
        parts = {"params": owner.policy.parameters(), "lr": 1e-2}, {"params": [owner.scale], "lr": 3e-2}
        return OPTIMIZERS[name](list(parts))

    early = make(module)
    weights = FlatWeights(module)
    features = torch.randn(8, 5)
    descend(module, weights, early if is_early else make(module), features)
    descend(free, free, make(free), features)
    for got, want in zip(module.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(got.data, want.data)


@pytest.mark.parametrize("frozen", ["policy.0.weight", "policy.2.bias", "scale"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_weight_stays_as_it_is(frozen, name):
    torch.manual_seed(7)
    module = Pair()
    module.get_parameter(frozen).requires_grad_(False)
    free = copy.deepcopy(module)
    weights = FlatWeights(module)
    features, before = torch.randn(8, 5), module.get_parameter(frozen).clone()
    descend(module, weights, OPTIMIZERS[name](weights.parameters()), features)
    descend(free, free, OPTIMIZERS[name](free.parameters()), features)
    assert list(module.state_dict()) == list(free.state_dict())
    for each, want in free.named_parameters():
        torch.testing.assert_close(module.get_parameter(each).data, want.data)
    assert torch.equal(module.get_parameter(frozen), before)


def test_copies_and_second_vectors_know_what_is_frozen():
    module = Pair()
    module.scale.requires_grad_(False)
    for each in (module, copy.deepcopy(module), copy.deepcopy(module).double()):
        assert FlatWeights(each).flat.numel() == sum(part.numel() for part in module.policy.parameters())
    twice = FlatWeights(copy.deepcopy(module))
    assert [view.shape for view in twice.views(twice.flat).values()] == [p.shape for p in module.policy.parameters()]
    twice.double()
    assert {each.dtype for each in twice._linked[0].parameters()} == {torch.float64}


def test_a_copy_has_memory_and_gradient_of_its_own(linked):
    module, weights, _ = linked
    weights(torch.randn(8, 5)).sum().backward()
    copied = copy.deepcopy(module)
    assert all(each.grad is None for each in copied.parameters())
    with torch.no_grad():
        weights.flat.add_(1)
    assert not any(torch.equal(a, b) for a, b in zip(copied.parameters(), module.parameters(), strict=True))


def test_too_late_to_freeze(linked):
    """It would do nothing: the vector trains."""
    module, _, _ = linked
    with pytest.raises(ConfigError, match="too late"):
        module.policy.requires_grad_(False)
    with pytest.raises(ConfigError, match="too late"):
        module.scale.requires_grad = False
    module.requires_grad_(True)


def test_all_frozen():
    with pytest.raises(ConfigError, match="all weights of the agent are frozen"):
        FlatWeights(Pair().requires_grad_(False))


def test_an_optimizer_that_leaves_something_out_is_refused(linked):
    module, weights, free = linked
    make = torch.optim.SGD
    for params in (weights.parameters(), module.parameters(), [*module.policy.parameters(), module.scale]):
        require_all_held(make(params), module)
    with pytest.raises(ConfigError, match=r"does not hold scale of the agent's 7 weights: module.parameters\(\)"):
        require_all_held(make(module.policy.parameters()), module)
    with pytest.raises(ConfigError, match="does not hold scale and 6 more"):
        require_all_held(make(free.parameters()), module)
    require_all_held(make(free.parameters()), free)
    with pytest.raises(ConfigError, match=r"^make_optimizer returned None: "):
        require_all_held(None, module)


def test_weights_by_the_beginning_of_their_names(linked):
    module, weights, _ = linked
    chosen, others = split_weights(nn.Sequential(weights), "policy.")
    assert [*map(id, chosen)] == [id(each) for each in module.policy.parameters()]
    assert [*map(id, others)] == [id(module.scale)]
    with pytest.raises(ConfigError, match=r"begins with valeu\.: scale, policy are there"):
        split_weights(weights, "valeu.")


def penalty(parameters):
    return 0.1 * sum(each.square().sum() for each in parameters)


@pytest.mark.parametrize("is_apart", [False, True])
@pytest.mark.parametrize("loss_of", [PPOLoss, lambda agent, _: FlatLoss(agent)], ids=["compiled", "autograd"])
def test_a_term_of_the_agents_own_weights_trains(loss_of, is_apart):
    """Added to the loss by a script, or in a backward pass of its own; as the same term of the vector."""
    grads = []
    for of_agent in (False, True):
        agent = build_agent(ACTIONS["discrete"])
        module = loss_of(agent, CONFIG)
        loss = module(make_rows(agent, 16), coefs_of(CONFIG)).loss
        term = penalty((agent if of_agent else module).parameters())
        if is_apart:
            loss.backward()
            term.backward()
        else:
            (loss + term).backward()
        grads.append(torch.cat([each.grad.flatten() for each in module.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    assert (grads[0] - penalty_gradient(agent)).norm() > 0.1  # the loss has its part


class FlatLoss(nn.Module):
    """The plain loss of an agent."""

    def __init__(self, agent):
        super().__init__()
        self.weights = FlatWeights(agent)

    def forward(self, rows, coefs):
        return minibatch_loss(self.weights, rows, coefs)


def penalty_gradient(agent):
    return torch.cat([0.2 * each.detach().flatten() for each in agent.parameters()])


def test_a_term_of_the_agents_own_weights_is_refused_where_ranks_would_differ(monkeypatch):
    agent = build_agent(ACTIONS["discrete"])
    PPOLoss(agent, CONFIG)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="is not averaged over ranks: a term of minibatch_loss"):
        penalty(agent.parameters()).backward()


def test_hooks_on_gradients_of_single_weights_are_refused():
    """Before the loss is made, and after: they would not be called."""
    agent = build_agent(ACTIONS["discrete"])
    handle = next(agent.parameters()).register_hook(lambda grad: 0 * grad)
    with pytest.raises(ConfigError, match="would not be called"):
        PPOLoss(agent, CONFIG)
    handle.remove()
    PPOLoss(agent, CONFIG)
    with pytest.raises(ConfigError, match="would not be called"):
        next(agent.parameters()).register_hook(lambda grad: 0 * grad)
