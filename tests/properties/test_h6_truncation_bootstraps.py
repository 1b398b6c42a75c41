"""H6: a truncated episode bootstraps from its final observation; a terminated one does not."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.ppo.advantages import gae
from fabric_ppo.seeding import episode_seed
from tests.fixtures.agents import known_agent, random_agent
from tests.fixtures.envs import SEED
from tests.fixtures.learning import learned_value
from tests.fixtures.rollouts import rollouts
from tests.fixtures.toy_envs import decode, toy_env, toy_reward


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@pytest.mark.parametrize("length", [3, 4], ids=["inside", "at the edge"])
def test_a_rollout_is_what_happened(open_envs, backend, ends, length):
    """Rows, flags and V of the true successors, in rollouts of 8 steps: of episodes of 4 one ends at the edge."""
    num_envs, num_steps = 3, 8
    envs = open_envs(toy_env(length=length, ends=ends), num_envs, backend=backend)
    agent = known_agent(envs.spec)
    for update, rollout in enumerate(rollouts(envs, agent, num_steps, 3)):
        assert rollout.valid.all()
        for t in range(num_steps):
            episode, at = divmod(update * num_steps + t, length)
            is_last = at == length - 1
            for env in range(num_envs):
                here, row = episode_seed(SEED, env, episode, num_envs), (t, env)
                assert decode("float32", rollout.obs[row]) == (here, at)
                assert rollout.rewards[row] == toy_reward(at, rollout.actions[row])
                assert rollout.terminated[row] == (is_last and ends != "truncated")
                assert rollout.truncated[row] == (is_last and ends != "terminated")
                assert rollout.values[row] == 1000 * at + here % 1024 + 1
                if ends == "truncated" or not is_last:
                    # the episode's own next observation, also after its last step; never the next episode's first
                    assert rollout.next_values[row] == 1000 * (at + 1) + here % 1024 + 1


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@pytest.mark.parametrize("length", [3, 4], ids=["inside", "at the edge"])
def test_returns_bootstrap_where_an_episode_was_only_cut(open_envs, backend, ends, length):
    """With lambda 1 the target is the discounted sum of rewards, plus V(final observation) unless that is terminal."""
    num_steps, gamma = 8, 0.5
    envs = open_envs(toy_env(length=length, ends=ends), 2, backend=backend)
    agent = known_agent(envs.spec)
    for rollout in rollouts(envs, agent, num_steps, 2):
        flags = rollout.terminated, rollout.truncated
        _, returns = gae(rollout.rewards, rollout.values, rollout.next_values, *flags, gamma, 1.0)
        for env in range(2):
            for t in range(num_steps):
                seed, at = decode("float32", rollout.obs[t, env])
                steps = min(length - at, num_steps - t)  # to the end of the episode, or of the rollout
                expected = sum(gamma**k * rollout.rewards[t + k, env].item() for k in range(steps))
                if at + steps < length or ends == "truncated":
                    expected += gamma**steps * (1000 * (at + steps) + seed % 1024 + 1)
                assert returns[t, env].item() == pytest.approx(expected, rel=1e-6)


def test_environments_end_at_different_times(open_envs, backend):
    """Each final observation is valued in the row of its own environment: CartPole, cut or fallen."""
    name = "CutCartPole-v0"
    if name not in gymnasium.registry:
        gymnasium.register(name, gymnasium.spec("CartPole-v1").entry_point, max_episode_steps=10)
    num_envs, num_steps = 5, 64
    envs = open_envs(name, num_envs, backend=backend)
    agent = random_agent(envs.spec)
    (rollout,) = rollouts(envs, agent, num_steps, 1)
    cut, fallen = rollout.truncated & ~rollout.terminated, rollout.terminated
    assert cut.any()
    assert fallen.any()
    assert (cut.any(1) & ~cut.all(1)).any()
    twin = gymnasium.make(name)
    for env in range(num_envs):
        episode, obs = 0, twin.reset(seed=episode_seed(SEED, env, 0, num_envs))[0]
        for t in range(num_steps):
            np.testing.assert_array_equal(rollout.obs[t, env], obs)
            obs, _, terminated, truncated, _ = twin.step(rollout.actions[t, env].item())
            if not terminated:
                expected = agent.values(torch.from_numpy(obs)[None]).item()
                assert rollout.next_values[t, env].item() == pytest.approx(expected, abs=1e-5)
            if terminated or truncated:
                episode += 1
                obs, _ = twin.reset(seed=episode_seed(SEED, env, episode, num_envs))


def ending(rollout):
    """A rollout whose truncated episodes are taken for ended ones."""
    return dataclasses.replace(rollout, terminated=rollout.terminated | rollout.truncated)


def test_a_time_limit_does_not_lower_the_value(open_envs):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 10, though each episode is cut after 20 steps."""
    assert learned_value(open_envs("Endless-v0", 4)) == pytest.approx(10, rel=0.05)


def test_a_time_limit_taken_for_an_end_would_lower_the_value(open_envs):
    """The control of the test above: by then the mean over 20 steps of (1 - 0.9^k) / 0.1 = 6.0 would be learned."""
    expected = np.mean([(1 - 0.9**k) / 0.1 for k in range(1, 21)])
    value = learned_value(open_envs("Endless-v0", 4), ending)
    assert value == pytest.approx(expected, rel=0.15)
