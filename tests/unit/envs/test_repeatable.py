"""A trial tells environments whose episodes follow from seed and actions from those whose do not."""

from __future__ import annotations

import contextlib
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.repeatable import _random_action, try_repeating
from tests.fixtures import toy_envs, unrepeatable_envs

TOY, WORSE = toy_envs.__name__, unrepeatable_envs.__name__


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("CartPole-v1", True),
        ("LunarLander-v3", True),
        ("Pendulum-v1", True),
        ("BipedalWalker-v3", True),
        (f"{TOY}:Toy-v0", True),
        (f"{WORSE}:DriftsObs-v0", False),
        (f"{WORSE}:DriftsReward-v0", False),
        (f"{WORSE}:Uncertain-v0", False),
        (f"{WORSE}:Remembers-v0", False),
        (f"{WORSE}:RunningRewards-v0", False),
        (f"{WORSE}:RunningObservations-v0", False),
    ],
)
def test_a_trial_tells_what_is_repeatable(env_id, expected):
    with contextlib.closing(make_gymnasium_env(env_id)) as env:
        space = env_spec("", env.observation_space, env.action_space).observation
        why = try_repeating(env, space, math.inf)
        assert why == ("" if expected else "an episode does not follow from its seed and actions alone")


@pytest.mark.parametrize(
    ("space", "mask", "possible"),
    [
        (spaces.Discrete(4, start=3), [0, 1, 0, 255], [4, 6]),
        (spaces.MultiDiscrete([2, 3], start=[5, 0]), [1, 0, 0, 1, 1], [[5, 1], [5, 2]]),
        (spaces.MultiDiscrete([[2], [2]]), [0, 1, 1, 1], [[[1], [0]], [[1], [1]]]),
        (spaces.MultiBinary([1, 2]), [0, 1], [[[0, 0]], [[0, 1]]]),
    ],
)
def test_the_trial_of_an_environment_keeps_to_its_masks(space, mask, possible):
    """All that is possible is tried, in the form that the environment takes, and nothing else."""
    space.seed(0)
    drawn = [_random_action(space, {"action_mask": np.array(mask, np.uint8)}) for _ in range(50)]
    assert all(space.contains(each) for each in drawn)
    assert sorted({str(np.asarray(each).tolist()) for each in drawn}) == [str(each) for each in possible]


class Odd(gymnasium.Env):
    """Returns its reward as an array of one, and turns PyTorch's settings over."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        torch.set_num_threads(3)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        self.t += 1
        return np.full(1, self.t, np.float32), np.array([1.0]), np.array([self.t == 3]), False, {}


def test_the_trial_reads_rewards_as_a_rollout_does_and_keeps_pytorchs_settings():
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    space = env_spec("", Odd.observation_space, Odd.action_space).observation
    assert try_repeating(Odd(), space, math.inf) == ""
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()) == settings
