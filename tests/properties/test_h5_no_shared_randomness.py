"""H5: no two environments, on any ranks, share a seed or a noise stream."""

from __future__ import annotations

import numpy as np
import pytest

from fabric_ppo.envs.contract import PastEpisode
from fabric_ppo.seeding import action_uniforms, episode_seed
from tests.fixtures.envs import reset, step, zeros
from tests.fixtures.toy_envs import decode, toy_env

RUN_SEEDS = (0, 1, 42, 2**32 - 1)
TEST_BIT = 2**30


def test_no_two_environments_or_updates_share_noise():
    """Every draw of 3 runs x 4 updates x 13 environments is another number."""
    draws = [action_uniforms(seed, update, 0, 13, 5, 3) for seed in (0, 1, 42) for update in (0, 1, 2, 1000)]
    assert np.unique(draws).size == np.size(draws)


@pytest.mark.parametrize("seed", RUN_SEEDS)
@pytest.mark.parametrize("num_envs", [1, 3, 64])
def test_no_two_episodes_share_a_seed(seed, num_envs):
    """Also the reserved bit: distinct over environments and episodes, below 2**30."""
    seeds = [
        episode_seed(seed, env, episode, num_envs) for env in range(num_envs) for episode in range(2000 // num_envs)
    ]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) <= max(seeds) < TEST_BIT


def test_no_two_far_episodes_share_a_seed():
    """Blocks from all over the 2**30 episodes of a run."""
    starts = [k * (2**30 // 50) for k in range(50)]
    seeds = [episode_seed(42, 0, start + k, 1) for start in starts for k in range(100)]
    assert len(set(seeds)) == len(seeds)


def test_no_two_environments_share_an_episode_seed(open_envs, backend):
    """Over ranks, environments and episodes; and training's seeds leave the bit of test episodes alone."""
    num_ranks, num_envs, episodes, seen = 2, 3, 4, []
    for rank in range(num_ranks):
        envs = open_envs(toy_env(length=1), num_envs, rank, num_ranks, backend)
        obs = [reset(envs)] + [step(envs, zeros(envs)).obs for _ in range(episodes - 1)]
        seen += [decode("float32", row)[0] for rows in obs for row in rows]
    assert len(set(seen)) == len(seen) == num_ranks * num_envs * episodes
    assert all(0 <= seed < 2**30 for seed in seen)


def test_no_two_environments_of_envpool_share_a_seed(monkeypatch, open_envs):
    """Over ranks, and over resumptions; below 2**30, which test episodes do not draw and an int32 holds."""
    given = []

    def make(*args, seed, **kwargs):
        given.extend(seed)
        return make_gymnasium(*args, seed=seed, **kwargs)

    envpool = pytest.importorskip("envpool", reason="EnvPool needs Python 3.11")
    make_gymnasium = envpool.make_gymnasium
    monkeypatch.setattr(envpool, "make_gymnasium", make)
    num_ranks, num_envs = 3, 4
    firsts = []
    for rank in range(num_ranks):
        envs = open_envs("CartPole-v1", num_envs, rank, num_ranks, backend="envpool")
        firsts.append(reset(envs))
        obs = np.zeros((num_envs, 4), np.float32)
        past = [PastEpisode(number, None, obs[0], 0.0, 0) for number in (0, 5, 7, 5)]
        assert all(envs.rebuild(past, obs))
        firsts.append(obs)
    assert len(set(given)) == len(given) == 2 * num_ranks * num_envs
    assert all(0 <= seed < 2**30 for seed in given)
    assert len(np.unique(np.concatenate(firsts), axis=0)) == len(given)
