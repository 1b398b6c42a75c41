"""Functions that a program has replaced while it runs."""

from __future__ import annotations

import functools

import pytest

from fabric_ppo.agents import agent, distributions, encoders, mlp
from fabric_ppo.fast.replaced import replaced_functions
from fabric_ppo.fast.written_for import ACTING, LOSS, edited, replaced
from fabric_ppo.ppo import loss
from fabric_ppo.rollouts import actor

FILES = (*dict.fromkeys((*LOSS, *ACTING)), "ppo/advantages.py", "ppo/update.py", "run/run.py", "envs/sync_envs.py")


def mine(*args):
    return args


@functools.wraps(loss.ppo_loss)
def wrapping(*args):
    return loss.ppo_loss(*args)


class Categorical(distributions.Categorical):
    """With the name of the class that it replaces."""


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_replaced(name):
    assert replaced_functions(name) == []


@pytest.mark.parametrize(
    ("file", "owner", "name", "value"),
    [
        ("ppo/loss.py", loss, "ppo_loss", mine),
        ("ppo/loss.py", loss, "ppo_loss", wrapping),
        ("ppo/loss.py", loss, "ppo_loss", functools.partial(loss.ppo_loss)),
        ("ppo/loss.py", loss, "ppo_loss", loss.minibatch_loss),
        ("ppo/loss.py", loss, "minibatch_loss", lambda *args: args),
        ("ppo/loss.py", loss, "minibatch_loss", eval("lambda *args: args")),
        ("agents/distributions.py", distributions.Categorical, "sample", mine),
        ("agents/distributions.py", distributions.Categorical, "sample", distributions.Bernoulli.sample),
        ("agents/distributions.py", distributions, "Categorical", Categorical),
        ("agents/distributions.py", distributions, "gumbel", mine),
        ("agents/mlp.py", mlp.MLP, "forward", mine),
        ("agents/mlp.py", mlp.MLP, "linear_layers", property(mine)),
        ("agents/mlp.py", mlp.Tanh, "forward", mine),
        ("agents/agent.py", agent.Agent, "dtype", property(mine)),
        ("agents/agent.py", agent.Agent, "bounded", mine),
        ("agents/agent.py", agent, "_split_mask", mine),
        ("agents/encoders.py", encoders.Flat, "__call__", mine),
        ("rollouts/actor.py", actor.Actor, "act", mine),
        ("rollouts/actor.py", actor.Actor, "act", functools.wraps(actor.Actor.act)(lambda *args: args)),
    ],
)
def test_what_is_replaced_is_named(monkeypatch, file, owner, name, value):
    monkeypatch.setattr(owner, name, value, raising=False)
    expected = f"{owner.__name__}.{name}" if isinstance(owner, type) else name
    assert replaced_functions(file) == [expected]
    assert replaced((file,)) == [f"{file} ({expected})"]
    assert edited((file,)) == []


def test_what_a_file_imports_is_not_its_own(monkeypatch):
    monkeypatch.setattr(loss, "Rows", tuple)
    monkeypatch.setattr(loss, "more", mine, raising=False)
    assert replaced_functions("ppo/loss.py") == []
