"""Environments written as tensor code: Gymnasium's of the same names, within float32 rounding."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.envs.ids import TENSOR_ENVS, named_function

NAMES = sorted(TENSOR_ENVS)
TOLERANCE = {"tensor/Acrobot-v1": 1e-5, "tensor/CartPole-v1": 1e-6, "tensor/Pendulum-v1": 1e-5}


def make_pair(name):
    """The environment, and Gymnasium's without its wrappers."""
    env = named_function(TENSOR_ENVS[name], "env_id")()
    twin = gymnasium.make(name.removeprefix("tensor/")).unwrapped
    twin.reset(seed=0)
    return env, twin


def columns(state):
    """A state of N copies as `[N, n]`."""
    return torch.stack(list(state), -1) if isinstance(state, tuple) else state


@pytest.mark.parametrize("name", NAMES)
def test_spaces_and_limit_are_gymnasiums(name):
    env, twin = make_pair(name)
    assert env.observation_space == twin.observation_space
    assert env.action_space == twin.action_space
    assert env.max_episode_steps == gymnasium.spec(name.removeprefix("tensor/")).max_episode_steps


@pytest.mark.parametrize("name", NAMES)
def test_each_step_is_gymnasiums(name):
    """Observations, rewards and ends, from the same states, over 100 steps of many copies."""
    env, twin = make_pair(name)
    state, obs = env.initial(torch.arange(32))
    env.action_space.seed(1)
    num_ends = 0
    for step in range(100):
        actions = np.stack([env.action_space.sample() for _ in range(32)])
        before = columns(state).double().numpy()
        state, obs, rewards, terminated = env.transition(
            state, torch.from_numpy(actions), torch.arange(32), torch.full((32,), step)
        )
        for copy in range(32):
            twin.state = before[copy]
            twin.steps_beyond_terminated = None
            expected, reward, ended, _, _ = twin.step(actions[copy])
            np.testing.assert_allclose(obs[copy].numpy(), expected, rtol=0, atol=TOLERANCE[name])
            assert rewards[copy].item() == pytest.approx(reward, abs=TOLERANCE[name])
            assert terminated[copy].item() == ended
            num_ends += ended
    assert num_ends > 0 or name != "tensor/CartPole-v1"


@pytest.mark.parametrize("name", NAMES)
def test_episodes_begin_as_gymnasiums_do(name):
    """Quantiles of each entry of the first observations: Kolmogorov's distance, at a level of 1e-6."""
    env, twin = make_pair(name)
    n = 2000
    ours = env.initial(torch.arange(n))[1].numpy()
    theirs = np.stack([twin.reset(seed=seed)[0] for seed in range(n)])
    for mine, other in zip(ours.T, theirs.T, strict=True):
        grid = np.sort(np.concatenate([mine, other]))
        distance = abs(
            np.searchsorted(np.sort(mine), grid, "right") - np.searchsorted(np.sort(other), grid, "right")
        ).max()
        assert distance / n < np.sqrt(-np.log(1e-6 / 2) / n)


def test_acrobot_reaches_its_goal():
    """Hanging at rest it does not end; upright it does, with reward 0."""
    env, _ = make_pair("tensor/Acrobot-v1")
    state = torch.tensor([[0.0, 0, 0, 0], [np.pi, 0, 0, 0]])
    *_, rewards, terminated = env.transition(state, torch.tensor([1, 1]), torch.arange(2), torch.zeros(2))
    assert terminated.tolist() == [False, True]
    assert rewards.tolist() == [-1, 0]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_gymnasiums(name):
    env, _ = make_pair(name)
    state, _ = env.initial(torch.tensor([3]))
    twin = gymnasium.make(name.removeprefix("tensor/"), render_mode="rgb_array")
    twin.reset(seed=0)
    twin.unwrapped.state = columns(state)[0].numpy()
    np.testing.assert_array_equal(env.render(state), twin.render())
