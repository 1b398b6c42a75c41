"""Action masks from an environment's observations and info."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs.masks import action_mask_from_info
from fabric_ppo.rollouts.evaluate import evaluate

MASKED = "tests.fixtures.nested_envs:Masked-v0"


@pytest.mark.parametrize("ended", [False, True])
def test_a_mask_may_be_missing_only_where_an_episode_has_ended(ended):
    class Once(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(3), spaces.MultiDiscrete([2, 3])

        def reset(self, *, seed=None, options=None):
            return 0, {"action_mask": np.array([0, 1, 1, 0, 1], bool)}

        def step(self, action):
            return 1, 0.0, ended, False, {}

    env = action_mask_from_info(Once())
    assert env.reset()[0]["action_mask"].tolist() == [0, 1, 1, 0, 1]
    if not ended:
        with pytest.raises(KeyError, match="info has no action_mask"):
            env.step([1, 0])
        return
    assert env.observation_space.contains(env.step([1, 0])[0])


def test_the_environment_of_the_masks_does_raise():
    env = gymnasium.make(MASKED)
    env.reset(seed=0)
    impossible = int(env.unwrapped.mask.argmin())
    with pytest.raises(ValueError, match="is impossible"):
        env.step(impossible)


def test_no_impossible_action_is_taken_by_workers(tmp_path):
    flags = {"num_envs": 4, "num_steps": 64, "total_timesteps": 8192, "update_epochs": 4, "test_episodes": 10}
    flags |= {"env_id": MASKED, "env_backend": "async", "run_dir": str(tmp_path / "run")}
    policy = load_agent(train(Config(**flags, learning_rate=3e-3)))
    assert evaluate(policy, 20, 0).to_dict()["return_mean"] > 14
