"""Reasons why plain code runs: an edited file and a replaced function are told apart."""

from __future__ import annotations

import pytest

from fabric_ppo.agents.mlp import MLP
from fabric_ppo.fast import written_for
from fabric_ppo.fast.reasons import reasons_for_plain
from fabric_ppo.fast.written_for import ACTING, LOSS
from fabric_ppo.ppo import loss
from fabric_ppo.rollouts.actor import Actor
from tests.fixtures.agents import build_agent
from tests.fixtures.spaces import ACTIONS


def mine(*args):
    return args


@pytest.mark.parametrize(
    ("form", "files", "owner", "name", "named"),
    [
        ("loss", LOSS, loss, "ppo_loss", "ppo/loss.py (ppo_loss)"),
        ("loss", LOSS, loss, "minibatch_loss", "ppo/loss.py (minibatch_loss)"),
        ("loss", LOSS, MLP, "forward", "agents/mlp.py (MLP.forward)"),
        ("acting", ACTING, Actor, "act", "rollouts/actor.py (Actor.act)"),
    ],
)
def test_a_function_that_a_program_replaces_is_not_called_an_edit(form, files, owner, name, named, monkeypatch):
    monkeypatch.setattr(owner, name, mine)
    assert reasons_for_plain(build_agent(ACTIONS["box"]), form, files) == [f"replaced: {named}"]


def test_an_edit_and_a_replacement_are_both_named(monkeypatch):
    monkeypatch.setitem(written_for.FINGERPRINTS, "ppo/loss.py", "another")
    monkeypatch.setattr(MLP, "forward", mine)
    reasons = reasons_for_plain(build_agent(ACTIONS["box"]), "loss", LOSS)
    assert reasons == ["edited: ppo/loss.py", "replaced: agents/mlp.py (MLP.forward)"]


def test_without_either_there_is_none():
    assert reasons_for_plain(build_agent(ACTIONS["box"]), "loss", LOSS) == []
