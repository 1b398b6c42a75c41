"""Environments in this process and in workers, held against the contract in `envs/contract.py`."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest

from fabric_ppo.seeding import episode_seed
from tests.fixtures.envs import SEED, env_opener, reset, step, zeros
from tests.fixtures.toy_envs import OBSERVATIONS, decode, encode, toy_env, toy_reward


@pytest.fixture
def open_envs(backend):
    """Make environments of each backend as a run does; close them at the end."""
    with env_opener(backend) as open_:
        yield open_


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@pytest.mark.parametrize("kind", list(OBSERVATIONS))
def test_same_step_autoreset(open_envs, kind, ends):
    """Where an episode ends: its flags, its final observation, and at once the next episode's first."""
    length, rank, num_ranks, num_envs = 3, 1, 2, 3
    envs = open_envs(toy_env(length=length, ends=ends, observation=kind), num_envs, rank, num_ranks)

    def seed_of(local, episode):
        return episode_seed(SEED, rank * num_envs + local, episode, num_ranks * num_envs)

    expected = np.stack([encode(kind, seed_of(i, 0), 0) for i in range(num_envs)])
    first = reset(envs)
    assert first.dtype == expected.dtype
    np.testing.assert_array_equal(first, expected)
    for t in range(3 * length + 1):
        episode, at = divmod(t, length)
        actions = (np.arange(num_envs) + t) % 3
        got = step(envs, actions)
        ended = at == length - 1
        place = (episode + 1, 0) if ended else (episode, at + 1)
        expected = np.stack([encode(kind, seed_of(i, place[0]), place[1]) for i in range(num_envs)])
        np.testing.assert_array_equal(got.obs, expected)
        np.testing.assert_array_equal(got.rewards, [toy_reward(at, action) for action in actions])
        assert got.terminated.tolist() == [ended and ends != "truncated"] * num_envs
        assert got.truncated.tolist() == [ended and ends != "terminated"] * num_envs
        assert got.valid.all()
        assert [final.env for final in got.finals] == (list(range(num_envs)) if ended else [])
        for final in got.finals:
            np.testing.assert_array_equal(final.obs, encode(kind, seed_of(final.env, episode), length))


def test_only_the_environment_that_ended_starts_anew(open_envs):
    """CartPole's episodes end at different times; each final observation belongs to the row of its flag."""
    envs = open_envs("CartPole-v1", 4)
    reset(envs)
    partly = 0
    for t in range(60):
        got = step(envs, np.array([0, 1, t % 2, t // 2 % 2]))
        ended = got.terminated | got.truncated
        assert [final.env for final in got.finals] == np.flatnonzero(ended).tolist()
        fresh = (np.abs(got.obs) <= 0.05).all(axis=1)  # CartPole starts every entry within 0.05
        assert fresh[ended].all()
        partly += ended.any() and not ended.all()
        for final in got.finals:
            # where CartPole falls
            assert abs(final.obs[0]) >= np.float32(2.4) or abs(final.obs[2]) >= np.float32(math.radians(12))
    assert partly > 2


def test_observations_do_not_change_afterwards(open_envs):
    """A final observation stays, also where the environment writes all its observations into the same memory."""
    envs = open_envs(toy_env(length=2, ends="truncated", reuses_memory=True), 2)
    reset(envs)
    step(envs, zeros(envs))
    finals = step(envs, zeros(envs)).finals
    step(envs, zeros(envs))
    assert [decode("float32", final.obs) for final in finals] == [(episode_seed(SEED, i, 0, 2), 2) for i in range(2)]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3"])
def test_an_episode_is_a_function_of_its_seed_and_actions(open_envs, env_id):
    """Bit for bit what a plain loop gives (in either backend, so the same in both), in a new environment each time."""
    rank, num_ranks, num_envs, steps = 1, 2, 2, 250
    envs = open_envs(env_id, num_envs, rank, num_ranks)
    space = gymnasium.make(env_id).action_space
    rng = np.random.default_rng(0)
    is_discrete = envs.spec.action.kind == "discrete"
    drawn = (lambda shape: rng.integers(0, space.n, shape)) if is_discrete else (lambda shape: rng.normal(0, 3, shape))
    actions = drawn((steps, num_envs, *space.shape))
    got_obs, got = [reset(envs)], []
    for each in actions:
        got.append(step(envs, each))
        got_obs.append(got[-1].obs)
    ended = 0
    for local in range(num_envs):
        episode = 0
        plain, obs = start_plain(env_id, rank * num_envs + local, episode, num_ranks * num_envs)
        np.testing.assert_array_equal(got_obs[0][local], obs)
        for t in range(steps):
            action = actions[t, local]
            action = action if is_discrete else np.clip(action.astype(np.float32) * space.high, space.low, space.high)
            obs, reward, terminated, truncated, _ = plain.step(action)
            if terminated or truncated:
                (final,) = (final for final in got[t].finals if final.env == local)
                np.testing.assert_array_equal(final.obs, obs)
                ended, episode = ended + 1, episode + 1
                plain, obs = start_plain(env_id, rank * num_envs + local, episode, num_ranks * num_envs)
            np.testing.assert_array_equal(got_obs[t + 1][local], obs)
            assert got[t].rewards[local] == np.float32(reward)
            assert (got[t].terminated[local], got[t].truncated[local]) == (terminated, truncated)
    assert ended >= 2


def start_plain(env_id, env, episode, total_envs):
    """A new environment at the start of an episode, and its first observation."""
    plain = gymnasium.make(env_id)
    return plain, plain.reset(seed=episode_seed(SEED, env, episode, total_envs))[0]


STORED = {
    "discrete": [0, 2, 1],
    "discrete_start": [0, 2, 1],
    "multi_discrete": [[0, 0, 0], [1, 2, 3], [0, 1, 2]],
    "multi_discrete_2d": [[[0, 0], [0, 0], [0, 0]], [[1, 2], [3, 1], [2, 2]], [[0, 1], [2, 0], [1, 2]]],
    "multi_binary": [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 1, 0]],
    "multi_binary_2d": [[[0, 0, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 1]], [[1, 1, 1], [1, 1, 0]]],
    "box": [[-5.0, -5.0], [5.0, 5.0], [0.125, 1.5]],
    "box_half": [[[-5.0, -5.0]], [[5.0, 5.0]], [[0.25, 0.75]]],
    "box_unbounded": [[-1e3, 1e3], [0.0, 0.5], [7.0, -7.0]],
}


TAKEN = STORED | {
    "discrete_start": [5, 7, 6],
    "multi_discrete": [[0, -1, 7], [1, 1, 10], [0, 0, 9]],
    "multi_discrete_2d": [[[0, 1], [-2, 0], [5, 6]], [[1, 3], [1, 1], [7, 8]], [[0, 2], [0, 0], [6, 8]]],
    "box": [[-1.0, -0.5], [0.25, 2.0], [-0.296875, 2.0]],  # 0.125 x 0.625 - 0.375
    "box_half": [[[-5.0, 0.0]], [[0.5, 5.0]], [[0.25, 0.75]]],
}


@pytest.mark.parametrize("kind", list(STORED))
def test_actions_reach_the_environment_converted(open_envs, kind):
    """From `start` up, stretched over bounds, clipped, in shape; the environment refuses what it does not take."""
    envs = open_envs(toy_env(action=kind), 3)
    reset(envs)
    got = step(envs, STORED[kind])
    np.testing.assert_array_equal(got.rewards, np.float32([toy_reward(0, action) for action in TAKEN[kind]]))


def test_an_environment_cannot_change_stored_actions(open_envs):
    """`collect` hands over arrays that may share memory with what it keeps; an environment may scribble on them."""
    envs = open_envs(toy_env(action="multi_discrete", scribbles=True), 2)
    reset(envs)
    stored = np.zeros((2, 3), np.int64)
    step(envs, stored)
    np.testing.assert_array_equal(stored, 0)
