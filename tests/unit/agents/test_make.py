"""Agents as the flags ask for them, and flags that are refused."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.agents import masked_agent


def test_actions_start_with_the_deviation_asked_for():
    spec = env_spec("Test-v0", spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    agent = make_agent(spec, Config(env_id="Pendulum-v1", log_std_init=-0.5))
    params = agent.policy_params(torch.zeros(1, 3))
    assert params[0, 2:].tolist() == [-0.5, -0.5]


@pytest.mark.parametrize(
    ("env_id", "encoder"),
    [
        ("FrozenLake-v1", "auto"),
        ("tests.fixtures.nested_envs:Images-v0", "auto"),
        ("CartPole-v1", "tests.fixtures.nested_envs:Linear"),
    ],
)
def test_normalising_without_a_box_is_refused(env_id, encoder):
    env = gymnasium.make(env_id)
    spec = env_spec(env_id, env.observation_space, env.action_space)
    with pytest.raises(ConfigError, match=r"^--normalize-observations: a Box is expected among the observations, "):
        make_agent(spec, Config(env_id=env_id, encoder=encoder, normalize_observations=True))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"^action_mask has 5 entries; 6, one a choice, are expected$"):
        masked_agent(size=5)
