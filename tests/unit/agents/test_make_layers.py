"""Layers that an edit of `make_agent` puts into an agent: a loaded agent would not have them."""

from __future__ import annotations

import pytest
from torch import nn

from fabric_ppo.agents import make
from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.spaces import BOX_SPEC


def swap(agent):
    agent.policy[1] = nn.GELU()


def widen(agent):
    agent.value[0] = nn.Linear(5, 64, bias=False)


def add(agent):
    agent.aux = nn.Linear(64, 5)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (swap, "the agent's policy.1 is GELU(approximate='none'), and a policy that is loaded would have Re"),
        (widen, "the agent's value.0 is Linear(in_features=5, out_features=64, bias=False)"),
        (
            add,
            "the agent's aux is Linear(in_features=64, out_features=5, bias=True), and a policy that is loaded",
        ),
    ],
)
def test_other_layers_are_refused(edit, text, monkeypatch):
    monkeypatch.setattr(make, "_require_repeatable", edit)
    with pytest.raises(ConfigError) as error:
        make_agent(BOX_SPEC, Config())
    assert str(error.value).startswith(text)
    assert "mlp.py is expected" in str(error.value)
