"""Returns and lengths of the episodes that end in a rollout."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.fixtures.agents import known_agent
from tests.fixtures.rollouts import rollouts
from tests.fixtures.toy_envs import toy_env


def test_episodes_carry_over_the_edges_of_rollouts(open_envs, backend):
    """Returns and lengths of episodes that span up to three rollouts, keyed by global environment, in order."""
    length, num_steps, num_envs, rank = 7, 3, 2, 1
    envs = open_envs(toy_env(length=length, ends="truncated"), num_envs, rank, 2, backend)
    rewards = np.zeros((0, num_envs))
    ended = 0
    for update, rollout in enumerate(rollouts(envs, known_agent(envs.spec), num_steps, 10)):
        rewards = np.concatenate([rewards, rollout.rewards.numpy().astype(np.float64)])
        expected = []
        for t in range(num_steps):
            total = update * num_steps + t + 1
            if total % length == 0:
                returns = rewards[total - length : total].sum(0)
                expected += [(t, rank * num_envs + env, returns[env], length) for env in range(num_envs)]
        assert [dataclasses.astuple(episode)[:4] for episode in rollout.episodes] == expected
        ended += len(expected)
    assert ended == 30 // length * num_envs


def test_several_episodes_in_one_rollout(open_envs, backend):
    """Episodes of one step: each has its own return, and none has another's."""
    envs = open_envs(toy_env(length=1), 2, backend=backend)
    for rollout in rollouts(envs, known_agent(envs.spec), 4, 2):
        expected = [(t, env, rollout.rewards[t, env].item(), 1) for t in range(4) for env in range(2)]
        assert [dataclasses.astuple(episode)[:4] for episode in rollout.episodes] == expected
