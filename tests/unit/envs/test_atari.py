"""`--env-preset atari`, held against Gymnasium's own wrappers in a plain loop, and against ALE's count of lives."""

from __future__ import annotations

import multiprocessing
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.ids import resolve_env_id, resolve_envpool_id
from fabric_ppo.envs.make import make_envs
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.run.resolve import resolve
from fabric_ppo.seeding import episode_seed
from tests.fixtures.envs import BACKENDS
from tests.fixtures.preprocessing import by_hand

pytest.importorskip("ale_py", reason="the extra atari")


SEED = 5


HAS_ENVPOOL = sys.version_info >= (3, 11)


EVERY_BACKEND = [*BACKENDS, *(["envpool"] if HAS_ENVPOOL else [])]


needs_envpool = pytest.mark.skipif(not HAS_ENVPOOL, reason="EnvPool needs Python 3.11")


@pytest.fixture
def open_envs():
    opened = []

    def open_(env_id, num_envs, backend="sync", **flags):
        config = Config(env_id=env_id, env_preset="atari", env_backend=backend, num_envs=num_envs, seed=SEED, **flags)
        opened.append(make_envs(config, 0, 1))
        return config, opened[-1]

    yield open_
    for envs in opened:
        envs.close()
    assert not multiprocessing.active_children()


def step_all(envs, actions):
    """Observations, rewards, terminated, truncated and lost lives after each of `actions [T, N]`."""
    n, obs_space = envs.num_envs, envs.spec.observation
    for each in actions:
        obs = np.zeros((n, *obs_space.shape), obs_space.dtype)
        flags = [np.zeros(n, np.bool_) for _ in range(3)]
        rewards = np.zeros(n, np.float32)
        finals = envs.step(each, obs, rewards, *flags)
        yield obs, rewards, flags[0], flags[1], envs.lost_life.copy(), finals


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_gymnasiums_preprocessing_over_several_games(open_envs, backend):
    """Breakout, which loses five lives in a few hundred steps."""
    _, envs = open_envs("ALE/Breakout-v5", 2, backend)
    twins = [by_hand("ALE/Breakout-v5") for _ in range(2)]
    episodes, lives = [0, 0], [5, 5]
    obs = np.zeros((2, 4, 84, 84), np.uint8)
    envs.reset(obs)
    for i, twin in enumerate(twins):
        np.testing.assert_array_equal(obs[i], twin.reset(seed=episode_seed(SEED, i, 0, 2))[0])
    actions = np.random.default_rng(0).integers(0, 4, (320, 2))
    for each, got in zip(actions, step_all(envs, actions), strict=True):
        final_obs = {final.env: final.obs for final in got[5]}
        for i, twin in enumerate(twins):
            obs, reward, terminated, truncated, info = twin.step(each[i])
            assert [column[i] for column in got[1:5]] == [reward, terminated, truncated, info["lives"] < lives[i]]
            lives[i] = info["lives"]
            if terminated:
                np.testing.assert_array_equal(final_obs[i], obs)
                episodes[i] += 1
                obs, info = twin.reset(seed=episode_seed(SEED, i, episodes[i], 2))
                lives[i] = info["lives"]
            np.testing.assert_array_equal(got[0][i], obs)
    assert min(episodes) >= 1


@needs_envpool
def test_envpools_own_preprocessing_is_the_same(open_envs):
    """Without sticky actions a game depends on nothing but its number of no-ops: some number gives the same game."""
    _, envs = open_envs("BreakoutNoFrameskip-v4", 1, "envpool")
    first = np.zeros((1, 4, 84, 84), np.uint8)
    envs.reset(first)
    actions = np.random.default_rng(1).integers(0, 4, (320, 1))
    played = list(step_all(envs, actions))
    length = next(t for t, got in enumerate(played) if got[2][0]) + 1
    twin = by_hand("BreakoutNoFrameskip-v4")
    twin.reset(seed=0)
    assert any(is_same_game(twin, number, first, actions[:length], played[:length]) for number in range(1, 31))


def is_same_game(twin, noops, first, actions, played):
    twin.unwrapped._np_random = SimpleNamespace(integers=lambda *_: noops)
    obs, info = twin.reset()
    if not np.array_equal(obs, first[0]):
        return False
    for (action,), got in zip(actions, played, strict=True):
        lives = info["lives"]
        obs, *flags, info = twin.step(action)
        if not np.array_equal(obs, got[0][0]) or [column[0] for column in got[1:5]] != [*flags, info["lives"] < lives]:
            return False
    return True


@needs_envpool
@pytest.mark.parametrize(("env_id", "chance"), [("ALE/Pong-v5", 0.25), ("PongNoFrameskip-v4", 0.0)])
def test_envpool_has_the_games_own_sticky_actions(open_envs, env_id, chance):
    """The chance is the id's: 0.25 for v5 (arXiv 1709.06009), none for ids without it."""
    _, envs = open_envs(env_id, 1, "envpool")
    assert envs._pool.spec.config.repeat_action_probability == pytest.approx(chance)
    assert not envs._pool.spec.config.use_fire_reset


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_signs_of_rewards_are_learnt_and_full_games_are_logged(open_envs, backend):
    """Signs of rewards and lives that end, against full games and their points: Space Invaders' are 5 to 30."""
    config, envs = open_envs("ALE/SpaceInvaders-v5", 2, backend, num_steps=500)
    agent = make_agent(envs.spec, config)
    buffer = RolloutBuffer(envs, agent, config.num_steps)
    rollout = collect(agent, buffer, SEED, 0)
    raw = buffer.rewards.copy()
    assert set(np.unique(raw)) - {0, 1}
    np.testing.assert_array_equal(rollout.rewards, np.sign(raw))
    assert rollout.obs.dtype is torch.uint8
    games = [episode for episode in rollout.episodes if episode.length == episode.t + 1]
    assert games
    assert len(rollout.episodes) == buffer.terminated.sum() + buffer.truncated.sum()
    for game in games:
        assert game.ret == raw[: game.length, game.env].sum()
        ends = rollout.terminated[: game.length, game.env].numpy()
        assert ends[-1]
        assert ends.sum() in (2, 3), "three lives, of which a game may take the last two at once"
    assert not rollout.snapshot.ended[rollout.terminated.numpy() & ~buffer.terminated].any()


def test_scaled_rewards_are_scaled_signs_up_to_the_life_that_ends(open_envs):
    """`--normalize-rewards` sums discounted signs since the last lost life."""
    config, envs = open_envs("ALE/SpaceInvaders-v5", 1, num_steps=400, normalize_rewards=True)
    agent = make_agent(envs.spec, config)
    buffer = RolloutBuffer(envs, agent, config.num_steps)
    rollout = collect(agent, buffer, SEED, 0)
    total, seen = 0.0, []
    for reward, ended in zip(np.sign(buffer.rewards[:, 0]), rollout.terminated[:, 0], strict=True):
        total = config.gamma * total + reward
        seen.append(total)
        total = 0.0 if ended else total
    assert rollout.terminated.sum() > buffer.terminated.sum()
    expected = agent.reward_scale.sums(torch.tensor(seen, dtype=torch.float64)[:, None])
    torch.testing.assert_close(rollout.moments, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"env_preset": "mario"}, "--env-preset mario: atari is expected"),
        ({}, "--env-id CartPole-v1: not an Atari game; with --env-preset atari one is expected"),
        ({"env_id": "ALE/Pung-v5"}, r"--env-id ALE/Pung-v5: .*Pong.*"),
        (
            {"env_id": "ALE/Pong-v5", "env_wrapper": "gymnasium.wrappers:FlattenObservation"},
            "--env-preset: cannot be had with --env-wrapper, one of the two is expected",
        ),
    ],
)
def test_impossible_flags_are_refused(flags, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        resolve(Config(**{"env_preset": "atari"} | flags))


@needs_envpool
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"env_id": "ALE/Pong-v5"},
            "EnvPool does not have it; --env-preset atari, or --env-backend sync or async is expected",
        ),
        (
            {"env_id": "Pong-v4", "env_preset": "atari"},
            "EnvPool does not have it; --env-backend sync or async is expected",
        ),
    ],
)
def test_a_game_that_envpool_lacks_is_refused(flags, message):
    with pytest.raises(ConfigError, match=f"^--env-id {flags['env_id']}: {message}$"):
        resolve(Config(env_backend="envpool", **flags))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_envpools_short_id_is_the_games(backend):
    config = Config(env_id="Pong-v5", env_preset="atari", env_backend=backend)
    assert resolve(config).env_id == "ALE/Pong-v5"


@pytest.mark.parametrize(("module", "preset"), [("ale_py", "atari"), ("cv2", "atari"), ("ale_py", None)])
def test_without_the_packages_the_error_says_how_to_get_them(monkeypatch, module, preset):
    monkeypatch.setitem(sys.modules, module, None)
    for each in (resolve_env_id, resolve_envpool_id):
        each.cache_clear()
    with pytest.raises(
        ConfigError, match=r"^--env-id ALE/Pong-v5: needs .*pip install ale-py opencv-python-headless \(.*\)$"
    ):
        resolve(Config(env_id="ALE/Pong-v5", env_preset=preset))
