"""H6 for environments that step as batches: in every autoreset mode, with arrays of every kind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.fixtures.agents import random_agent
from tests.fixtures.batches import KINDS, MODES
from tests.fixtures.learning import learned_value
from tests.fixtures.rollouts import rollouts

LENGTH = 3
FINALS = ["final_obs", "final_observation", "objects", ""]
"""Ways in which environments that are reset in the same step give final observations."""


def open_batch(open_envs, num_envs, function="Counting", **arguments):
    return open_envs(f"tests.fixtures.batches:{function}", num_envs, backend="vector", env_kwargs=json.dumps(arguments))


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mode", "final"), [(mode, "final_obs") for mode in MODES] + [("SAME_STEP", x) for x in FINALS[1:]]
)
def test_a_rollout_is_what_happened(open_envs, mode, kind, ends, final):
    """The transitions of each environment, one after the other, and V of their true successors."""
    num_envs, num_steps = 3, 8
    envs = open_batch(open_envs, num_envs, mode=mode, kind=kind, ends=ends, length=LENGTH, final=final)
    agent = random_agent(envs.spec)
    seen = [[] for _ in range(num_envs)]
    for rollout in rollouts(envs, agent, num_steps, 3):
        for t in range(num_steps):
            for env in range(num_envs):
                if rollout.valid[t, env]:
                    columns = ("obs", "rewards", "terminated", "truncated", "values", "next_values")
                    seen[env].append([getattr(rollout, name)[t, env] for name in columns])
    for env, rows in enumerate(seen):
        length = LENGTH + env % 2
        assert len(rows) >= 3 * num_steps * length / (length + 1)
        for number, (obs, reward, terminated, truncated, value, next_value) in enumerate(rows):
            episode, at = divmod(number, length)
            is_last = at == length - 1
            assert obs.tolist() == [episode, at]
            assert reward == 1
            assert terminated == (is_last and ends == "terminated")
            assert truncated == (is_last and ends == "truncated")
            assert value.item() == pytest.approx(value_of(agent, episode, at), abs=1e-5)
            if is_last and ends == "truncated" and not final and mode == "SAME_STEP":
                assert next_value == value  # nobody knows the final observation
            elif not terminated:
                assert next_value.item() == pytest.approx(value_of(agent, episode, at + 1), abs=1e-5)


def value_of(agent, episode, at):
    return agent.values(torch.tensor([[episode, at]], dtype=torch.float32)).item()


@pytest.mark.parametrize("mode", MODES)
def test_statistics_count_transitions(open_envs, mode):
    """Returns, lengths and transitions are those of the episodes, whatever rows a reset takes."""
    envs = open_batch(open_envs, 2, mode=mode, length=LENGTH)
    for rollout in rollouts(envs, random_agent(envs.spec), 16, 2):
        assert rollout.stats.env_steps == int(rollout.valid.sum())
        assert {(each.ret, each.length) for each in rollout.episodes} == {(3, 3), (4, 4)}


@pytest.mark.parametrize("mode", MODES)
def test_a_memory_is_cleared_where_an_episode_begins(open_envs, mode):
    """Wherever the observation is an episode's first, and nowhere else; and cleared it is zeros."""
    envs = open_batch(open_envs, 3, mode=mode, length=LENGTH)
    agent = random_agent(envs.spec, recurrent="gru", recurrent_size=5)
    first, *later = rollouts(envs, agent, 8, 3)
    for rollout in (first, *later):
        is_first = rollout.obs[..., 1] == 0
        is_first[0] = rollout.begins[0]
        assert torch.equal(rollout.begins, is_first)
        assert not rollout.memory[rollout.begins].any()
        assert rollout.memory[1:][~rollout.begins[1:]].any(-1).all()


@pytest.mark.parametrize(("mode", "final"), [(mode, "final_obs") for mode in MODES] + [("SAME_STEP", "")])
def test_a_time_limit_does_not_lower_the_value(open_envs, mode, final):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 10, though each episode is cut after 20 steps."""
    envs = open_batch(open_envs, 4, "endless", mode=mode, kind="torch", final=final)
    assert learned_value(envs) == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_an_end_lowers_the_value(open_envs, mode):
    """Of 20 or 21 steps with reward 1 the mean value is that of (1 - 0.9^k) / 0.1."""
    expected = np.mean([np.mean([(1 - 0.9**k) / 0.1 for k in range(1, length + 1)]) for length in (20, 21)])
    envs = open_batch(open_envs, 4, "endless", mode=mode, kind="torch", ends="terminated")
    assert learned_value(envs) == pytest.approx(expected, rel=0.15)


def test_an_agents_memory_is_empty_when_a_game_begins(open_envs):
    """Also of one that died in the game before, or joins later: what it did meanwhile is none of its episodes."""
    envs = open_envs("tests.fixtures.games:Relay", 6, backend="vector")
    agent = random_agent(envs.spec, recurrent="gru", recurrent_size=5)
    for rollout in rollouts(envs, agent, 16, 3):
        is_first = rollout.valid & (rollout.obs[..., 1] == torch.tensor([0, 0, 1] * 2))
        assert is_first[1:].any(0).all()
        assert not rollout.memory[1:][is_first[1:]].any()
