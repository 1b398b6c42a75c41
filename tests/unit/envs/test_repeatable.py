"""A trial tells environments whose episodes follow from seed and actions from those whose do not."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from gymnasium import spaces

from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.repeatable import _random_action, try_repeating
from fabric_ppo.envs.spaces import env_spec
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
