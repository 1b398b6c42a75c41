"""Acting step by step, held against the agent's own distribution."""

from __future__ import annotations

import pytest

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.actions import ActionConverter
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.rollouts.actor import Actor, make_plain_actor
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from tests.fixtures.acting import assert_draws_are_the_agents
from tests.fixtures.agents import build_acting_agent
from tests.fixtures.spaces import ACTIONS, OBSERVATIONS
from tests.fixtures.toy_envs import toy_env


@pytest.mark.parametrize("make_actor", [ActorChoice, lambda agent: make_plain_actor], ids=["chosen", "plain"])
def test_what_acts_is_what_is_stored(make_actor):
    """An agent of 64 bits draws actions that an environment of 64 bits must not see before they are rounded."""
    config = Config(env_id=toy_env(action="box_half"), num_envs=2, num_steps=4)
    envs = make_envs(config, 0, 1, "")
    assert envs.spec.action.dtype == "float64"
    agent = make_agent(envs.spec, config).double()
    buffer = RolloutBuffer(envs, agent, 4, make_actor(agent))
    taken, step = [], envs.step

    def spied(actions, *into):
        taken.append(actions.copy())
        return step(actions, *into)

    envs.step = spied
    collect(agent, buffer, 1, 0)
    envs.close()
    convert = ActionConverter(envs.spec.action)
    assert all((got == convert(stored)).all() for got, stored in zip(taken, buffer.actions, strict=True))


@pytest.mark.parametrize("shared_trunk", [False, True], ids=["apart", "trunk"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_actions_are_samples_with_the_noise_given(normalize, action, observation, shared_trunk):
    agent = build_acting_agent(action, observation, normalize_observations=normalize, shared_trunk=shared_trunk)
    assert_draws_are_the_agents(Actor, agent)
