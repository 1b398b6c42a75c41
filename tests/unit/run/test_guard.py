"""The guard, which restores an update's starting weights where it ended with something not finite."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from fabric_ppo.fast import written_for
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.ppo import loss
from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.errors import TrainingError
from fabric_ppo.run.guard import Guard
from tests.fixtures.agents import build_agent
from tests.fixtures.spaces import ACTIONS

FINE = UpdateStats(0.1, 0.2, 0.3, 0.01, 0.1, 1.0, 4, *(1.0,) * 5, 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["policy_loss", "value_loss", "entropy_loss", "approx_kl", "grad_norm"])
def test_guard_restores_when_a_statistic_is_not_finite(name, value):
    agent = build_agent(ACTIONS["box"])
    before = copy.deepcopy(agent.state_dict())
    guard = Guard(agent)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(1.0)
    with pytest.raises(TrainingError, match=rf"update 7: {name} not finite"):
        guard.check(dataclasses.replace(FINE, **{name: value}), 6)
    assert all(torch.equal(agent.state_dict()[key], kept) for key, kept in before.items())


@pytest.mark.parametrize("name", ["ppo/loss.py", "agents/distributions.py", "agents/mlp.py", "rollouts/actor.py"])
def test_an_edit_is_what_the_hint_names_first(name, monkeypatch):
    """Of the loss, the networks, or the actions whose probabilities it takes; each is named once."""
    monkeypatch.setitem(written_for.FINGERPRINTS, name, "another")
    text = f"update 1: policy_loss not finite; mend the edit of {name}, or lower --learning-rate, or normalize large "
    with pytest.raises(TrainingError, match=f"^{text}"):
        Guard(build_agent(ACTIONS["box"])).check(dataclasses.replace(FINE, policy_loss=math.nan), 0)


def test_what_a_program_has_replaced_is_not_called_an_edit(monkeypatch):
    monkeypatch.setattr(loss, "ppo_loss", lambda *args: args)
    text = r"update 1: policy_loss not finite; mend what is replaced in ppo/loss.py \(ppo_loss\), or lower "
    with pytest.raises(TrainingError, match=f"^{text}"):
        Guard(build_agent(ACTIONS["box"])).check(dataclasses.replace(FINE, policy_loss=math.nan), 0)


def test_without_an_edit_none_is_named():
    with pytest.raises(TrainingError, match=r"^update 1: policy_loss not finite; lower --learning-rate, or normalize "):
        Guard(build_agent(ACTIONS["box"])).check(dataclasses.replace(FINE, policy_loss=math.nan), 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["policy.0.weight", "value.4.bias", "log_std"])
def test_guard_restores_when_a_weight_is_not_finite(key, value):
    """Through FlatWeights as in a run: the vector that is optimised is restored too."""
    agent = build_agent(ACTIONS["box"])
    weights = FlatWeights(agent)
    before = weights.flat.detach().clone()
    guard = Guard(agent)
    with torch.no_grad():
        weights.flat.mul_(2.0)
        agent.state_dict()[key].flatten()[-1:].fill_(value)
    assert not torch.isfinite(weights.flat).all()
    with pytest.raises(TrainingError, match="update 1: weights not finite"):
        guard.check(FINE, 0)
    assert torch.equal(weights.flat.detach(), before)


def test_guard_goes_back_to_the_last_good_update():
    agent = build_agent(ACTIONS["discrete"])
    weights = FlatWeights(agent)
    guard = Guard(agent)
    with torch.no_grad():
        weights.flat.mul_(2.0)
    good = weights.flat.detach().clone()
    guard.check(FINE, 0)
    assert torch.equal(weights.flat.detach(), good)
    guard.keep()
    with torch.no_grad():
        weights.flat.fill_(math.nan)
    with pytest.raises(TrainingError) as caught:
        guard.check(dataclasses.replace(FINE, policy_loss=math.nan), 1)
    assert torch.equal(weights.flat.detach(), good)
    assert "policy_loss, weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_update_that_has_not_ended_is_not_gone_back_to():
    """Its losses are finite, and its running statistics may still turn out not to be."""
    agent = build_agent(ACTIONS["discrete"])
    weights = FlatWeights(agent)
    before = weights.flat.detach().clone()
    guard = Guard(agent)
    with torch.no_grad():
        weights.flat.mul_(2.0)
    guard.check(FINE, 0)
    with pytest.raises(TrainingError):
        guard.check(dataclasses.replace(FINE, grad_norm=math.inf), 0)
    assert torch.equal(weights.flat.detach(), before)
