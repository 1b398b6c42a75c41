"""Demonstrations as rows: returns by hand, statistics from their definition, minibatches that have each row once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.ppo.demonstrated import discounted_returns, make_episodes, take_statistics
from fabric_ppo.rollouts.demonstrations import Demonstrations
from tests.fixtures.agents import random_agent

LENGTHS = (3, 1, 4)


def demonstrations(spec=None, lengths=LENGTHS, truncated=(1, 2)):
    """Observations are (row, 0), final ones (-episode, 1), rewards the powers of 2."""
    spec = spec or env_spec("Test-v0", spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(3, start=4))
    rows, ends = sum(lengths), np.cumsum(lengths) - 1
    starts, cut, over = (np.zeros(rows, np.bool_) for _ in range(3))
    starts[[0, *(ends[:-1] + 1)]], cut[ends[list(truncated)]] = True, True
    over[ends] = ~cut[ends]
    obs = np.stack([np.arange(rows), np.zeros(rows)], 1).astype(np.float32)
    final = np.stack([-np.arange(len(lengths)), np.ones(len(lengths))], 1).astype(np.float32)
    actions = 4 + np.arange(rows) % 3
    return Demonstrations(spec, obs, actions, 2.0 ** np.arange(rows), over, cut, starts, final)


def agent_of(found, **options):
    return random_agent(found.spec, **options)


def test_returns_are_those_by_hand():
    """Episodes of rewards 1, 2, 4 (terminated), 8 (truncated) and 16, 32, 64, 128 (truncated)."""
    found = demonstrations()
    returns, discounts = discounted_returns(found.rewards, found.terminated, found.truncated, 0.5)
    assert returns.tolist() == [1 + 1 + 1, 2 + 2, 4, 8, 16 * 4, 32 * 3, 64 * 2, 128]
    assert discounts.tolist() == [0, 0, 0, 0.5, 1 / 16, 1 / 8, 1 / 4, 1 / 2]


def test_each_episode_is_followed_by_its_final_observation():
    found = demonstrations()
    agent = agent_of(found)
    episodes = make_episodes(found, agent, found.rewards, 0.5)
    assert episodes.obs.tolist() == [
        *([0, 0], [1, 0], [2, 0], [0, 1]),
        *([3, 0], [-1, 1]),
        *([4, 0], [5, 0], [6, 0], [7, 0], [-2, 1]),
    ]
    assert (episodes.first.tolist(), episodes.last.tolist()) == ([0, 4, 6], [3, 5, 10])
    assert [episodes.actions[row].item() for row in (0, 1, 2, 4, 6, 7, 8, 9)] == [0, 1, 2, 0, 1, 2, 0, 1], "from 0 up"
    assert episodes.returns.tolist() == [3, 4, 4, 0, 8, 0, 64, 96, 128, 128, 0]
    assert episodes.discounts[[3, 5, 10]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_minibatches_have_each_row_once_with_equal_weights(size, recurrent):
    found = demonstrations()
    episodes = make_episodes(found, agent_of(found, recurrent=recurrent, recurrent_size=3), found.rewards, 0.9)
    numbers = np.array([2, 0])
    minibatches = list(episodes.minibatches(episodes.units(numbers), size))
    taken = []
    for each in minibatches:
        flat, counts = each.rows.flatten(), each.weights > 0
        assert torch.equal(each.obs, episodes.obs[flat])
        assert torch.equal(each.actions, episodes.actions[flat])
        assert each.weights.sum().item() == pytest.approx(1)
        assert len(each.weights[counts].unique()) == 1
        taken += flat[counts].tolist()
        assert not set(flat[~counts].tolist()) - {3, 10}, "the rest is filled up with final observations"
    assert sorted(taken) == [0, 1, 2, 6, 7, 8, 9]
    most = 2 if recurrent != "none" else 7
    assert len(minibatches) == min(-(-7 // size), most)


def test_whole_episodes_go_through_the_memory_as_in_play():
    """Held against the agent acting step by step, from a memory of zeros in each episode."""
    found = demonstrations()
    agent = agent_of(found, recurrent="lstm", recurrent_size=4)
    episodes = make_episodes(found, agent, found.rewards, 0.9)
    (batch,) = episodes.minibatches(np.arange(3), 100)
    values = agent(batch.obs, batch.actions, batch.sequences).values.view(batch.rows.shape)
    for number, length in enumerate(LENGTHS):
        memory = torch.zeros(1, agent.memory_size)
        for step in range(length + 1):
            obs = episodes.obs[episodes.first[number] + step][None]
            torch.testing.assert_close(agent.values(obs, memory)[0], values[number, step])
            _, memory = agent.act(obs, None, memory)


def test_statistics_are_those_of_the_episodes_that_are_trained_on():
    found = demonstrations()
    agent = agent_of(found, normalize_observations=True, reward_discount=0.5)
    rewards = take_statistics(agent, found, np.array([0, 2]))
    rows = [0, 1, 2, 4, 5, 6, 7]
    assert agent.obs_moments.count.item() == 7
    np.testing.assert_allclose(agent.obs_moments.mean, found.obs[rows].mean(0))
    np.testing.assert_allclose(agent.obs_moments.std, np.sqrt(found.obs[rows].astype(float).var(0) + 1e-8))
    # discounted sums up to each step, as Gymnasium's NormalizeReward takes them
    sums = [1, 2.5, 5.25, 16, 40, 84, 170]
    deviation = np.sqrt(np.var(sums) + 1e-8)
    np.testing.assert_allclose(rewards, np.clip(found.rewards / deviation, -10, 10))
