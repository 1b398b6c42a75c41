"""Faults of an environment: which one, in which episode, at which step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.seeding import episode_seed
from tests.fixtures.envs import SEED, close_or_fail, env_opener, kill_workers, reset, run_into_fault, step, zeros
from tests.fixtures.toy_envs import toy_env


@pytest.fixture
def open_envs(backend):
    """Make environments of each backend as a run does; close them at the end."""
    with env_opener(backend) as open_:
        yield open_
        kill_workers()


@pytest.mark.parametrize("episode", [0, 2])
@pytest.mark.parametrize("fault", ["raise", "nan_obs", "inf_obs", "nan_reward", "inf_reward"])
def test_a_fault_is_named(open_envs, fault, episode):
    """The message's first line names the global environment, the episode's seed and the step (the first is 1)."""
    at, length, env, num_envs = 2, 4, 4, 3  # global environment 4 is local environment 1 of rank 1
    bad_seed = episode_seed(SEED, env, episode, 2 * num_envs)
    env_id = toy_env(length=length, fault=fault, at=at, only_seed=bad_seed)
    envs = open_envs(env_id, num_envs, rank=1, num_ranks=2)
    reset(envs)
    for _ in range(length * episode + at):
        step(envs, zeros(envs))
    with pytest.raises(EnvironmentFault) as caught:
        step(envs, zeros(envs))
    message = str(caught.value)
    first_line = message.splitlines()[0]
    assert first_line.startswith(f"{env_id} environment {env}, episode seed {bad_seed}, step {at + 1}: ")
    if fault == "raise":
        assert first_line.endswith("ToyError: told to raise")
        assert "in _raise_deep_inside" in message  # the environment's own traceback, to its innermost frame
        assert "toy_envs.py" in message
    else:
        assert "not finite" in message
        assert {"n": "nan", "i": "inf"}[fault[0]] in message
    close_or_fail(envs)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("fault", ["nan_obs", "inf_obs"])
def test_one_entry_that_is_not_finite_is_enough(open_envs, kind, fault):
    envs = open_envs(toy_env(observation=kind, fault=fault, at=0), 1)
    assert "not finite" in run_into_fault(envs, steps=1)


@pytest.mark.parametrize("episode", [0, 1])
def test_reset_that_raises_is_named(open_envs, episode):
    bad_seed = episode_seed(SEED, 1, episode, 2)
    env_id = toy_env(length=2, fault="raise_reset", only_seed=bad_seed)
    message = run_into_fault(open_envs(env_id, 2))
    place = f"{env_id} environment 1, episode seed {bad_seed}, step 0: reset raised "
    assert message.splitlines()[0] == place + "ToyError: told to raise in reset"
    assert "in reset" in message


class Odd(gymnasium.Env):
    """Returns given values: `obs` and `reward` of every step, and `first` from reset."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, obs=(0, 0, 0), reward=0.0, first=(0, 0, 0), render_mode=None):
        self.obs, self.reward, self.first = obs, reward, first

    def reset(self, *, seed=None, options=None):
        return np.array(self.first, np.float32), {}

    def step(self, action):
        return np.array(self.obs, np.float32), self.reward, False, False, {}


def odd_env(**options):
    gymnasium.registry.pop("Odd-v0", None)
    gymnasium.register("Odd-v0", entry_point=Odd, kwargs=options)
    return "Odd-v0"


def test_large_numbers_are_finite(open_envs):
    """Entries whose squares overflow are no fault."""
    envs = open_envs(odd_env(obs=(1e30, -3e38, 0), first=(3e38, 3e38, 3e38)), 1)
    np.testing.assert_array_equal(reset(envs), np.float32([[3e38, 3e38, 3e38]]))
    np.testing.assert_array_equal(step(envs, [0]).obs, np.float32([[1e30, -3e38, 0]]))


@pytest.mark.parametrize(
    "options",
    [
        {"first": (0, np.nan, 0)},
        {"reward": 1e39},  # infinite as float32, which is what a rollout keeps
        {"reward": None},
        {"obs": (1, 2)},
        {"obs": (1,)},  # NumPy would broadcast it
        {"first": (1, 2, 3, 4)},
    ],
    ids=str,
)
def test_invalid_observations_and_rewards_are_faults(open_envs, options):
    """A nan at reset, a reward that is no float32, an observation of another shape than the space's."""
    message = run_into_fault(open_envs(odd_env(**options), 2), steps=1)
    assert "environment 0, episode seed " in message
