"""A copy on the CPU of an agent that is elsewhere; a class that says so stands for a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.host import HostCopy
from fabric_ppo.fast.compiled_actor import ActorChoice, CompiledActor
from fabric_ppo.rollouts.actor import Actor
from tests.fixtures.agents import build_acting_agent
from tests.fixtures.spaces import ACTIONS, BOX, observe


class Elsewhere(Agent):
    """An agent that says that it is on a GPU."""

    device = torch.device("cuda")

    def to(self, *args, **kwargs):
        self.__class__ = Agent
        return Agent.to(self, *args, **kwargs)


def agent_elsewhere(**options):
    agent = build_acting_agent(ACTIONS["box"], normalize_observations=True, **options)
    agent.__class__ = Elsewhere
    return agent


def changed(agent):
    """An agent after an update: with other weights and statistics."""
    with torch.no_grad():
        for each in agent.parameters():
            each.add_(0.1 * torch.randn_like(each))
    agent.update_statistics(agent.obs_moments.sums(3 + observe(BOX, 50, seed=9).double()))


def test_an_agent_on_the_cpu_is_its_own_copy():
    agent = build_acting_agent(ACTIONS["discrete"])
    assert HostCopy(agent).latest() is agent


def test_a_copy_has_the_latest_weights_and_statistics():
    """Those too that follow from sums, and that no checkpoint holds."""
    agent = agent_elsewhere()
    host, obs = HostCopy(agent), observe(BOX, 20)
    for _ in range(3):
        copied = host.latest()
        assert copied is not agent
        assert copied.device.type == "cpu"
        with torch.no_grad():
            torch.testing.assert_close(copied.values(obs), agent.values(obs), rtol=0, atol=0)
        changed(agent)
        with torch.no_grad():
            assert not torch.allclose(copied.values(obs), agent.values(obs))


@torch.no_grad()
def test_a_small_agent_acts_where_its_environments_are():
    """By the compiled actor, as an agent on the CPU does; with the weights of the latest update."""
    agent = agent_elsewhere()
    choice, noise, obs = ActorChoice(agent), torch.randn(3, 8, 6), observe(BOX, 8)
    for _ in range(2):
        fast = choice(agent, noise, obs)
        assert type(fast) is CompiledActor
        expected = agent.act(obs, noise[0])[0].numpy()
        np.testing.assert_allclose(fast.act(obs.numpy()), expected, rtol=1e-4, atol=1e-5)
        changed(agent)


@pytest.mark.parametrize("options", [{"hidden_sizes": (256, 512)}, {"recurrent": "gru", "recurrent_size": 5}])
@torch.no_grad()
def test_only_small_agents_are_copied(options):
    agent = agent_elsewhere(**options)
    is_small = "hidden_sizes" not in options
    assert (ActorChoice(agent)._host is not None) == is_small
    assert (
        type(
            ActorChoice(build_acting_agent(ACTIONS["box"], **options))(
                build_acting_agent(ACTIONS["box"], **options), torch.randn(3, 8, 6), observe(BOX, 8)
            )
        )
        is Actor
    )
