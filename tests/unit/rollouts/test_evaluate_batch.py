"""Tests in environments that exist as batches: the first episode of each counts, whole games are played."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fabric_ppo.agents.policy import Policy
from fabric_ppo.envs.batched import make_tensor_envs
from fabric_ppo.envs.contract import EnvSettings
from fabric_ppo.envs.tensor.cartpole import CartPole
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts import evaluate_batch
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import evaluation_seed
from tests.fixtures.agents import random_agent
from tests.fixtures.batches import Counting
from tests.fixtures.envs import SEED
from tests.fixtures.videos import brightness


def policy_of(env_id, num_envs=3, env_kwargs=""):
    envs = make_tensor_envs(EnvSettings(env_id, SEED, num_envs, 0, num_envs, env_kwargs=env_kwargs))
    return Policy(random_agent(envs.spec))


def played_alone(policy, episode):
    """Return and length of a CartPole episode, by the functions themselves."""
    env, seed = CartPole(), torch.tensor([evaluation_seed(SEED, episode)])
    state, obs = env.initial(seed)
    for step in range(500):
        action = policy.act(obs.numpy())
        state, obs, _, ended = env.transition(state, torch.from_numpy(action), seed, torch.tensor([step]))
        if ended:
            break
    return step + 1.0, step + 1


def test_each_episode_is_the_one_of_its_seed():
    policy = policy_of("tensor/CartPole-v1")
    result = evaluate(policy, 12, SEED)
    assert list(zip(result.returns, result.lengths, strict=True)) == [played_alone(policy, k) for k in range(12)]
    assert result.cut_off == 0


def test_the_same_episodes_in_several_batches(monkeypatch):
    policy = policy_of("tensor/CartPole-v1")
    whole = [evaluate(policy, 7, SEED, stochastic=stochastic) for stochastic in (False, True)]
    monkeypatch.setattr(evaluate_batch, "_MOST_AT_ONCE", 3)
    assert [evaluate(policy, 7, SEED, stochastic=stochastic) for stochastic in (False, True)] == whole
    assert whole[0].returns != whole[1].returns


def test_episodes_without_an_end_are_cut_off():
    result = evaluate(policy_of("tensor/Pendulum-v1"), 3, SEED, step_limit=50)
    assert (result.lengths, result.cut_off) == ([50] * 3, 3)


def test_whole_games_are_played_and_the_mean_of_all_agents_counts():
    """Of a Relay all do what they do for 4, 2 and 3 steps: each gets its actions, and its number in each step."""
    policy = policy_of("tests.fixtures.games:Relay")
    result = evaluate(policy, 2, SEED)
    assert result.lengths == [4, 4]
    assert len(result.returns) == 2
    actions = [[policy.act(np.array([agent, step], np.float32)).item() for step in range(4)] for agent in range(3)]
    total = sum(actions[0]) + sum(actions[1][:2]) + 2 + sum(actions[2][1:]) + 2 * 3
    assert result.returns == pytest.approx([total / 3] * 2)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_a_vector_env_plays_in_every_mode(mode):
    policy = policy_of("tests.fixtures.batches:Counting", env_kwargs=f'{{"mode": "{mode}"}}')
    result = evaluate(policy, 4, SEED)
    assert (result.returns, result.lengths) == ([3, 4, 3, 4], [3, 4, 3, 4])


def test_progress_is_told():
    told = []
    evaluate(policy_of("tensor/CartPole-v1"), 3, SEED, report=lambda done, steps: told.append((done, steps)))
    assert told[-1][0] == 3
    assert [steps for _, steps in told] == sorted(steps for _, steps in told)


@pytest.mark.parametrize("env_id", ["tensor/CartPole-v1", "tests.fixtures.games:Relay"])
def test_the_first_game_is_recorded(tmp_path, env_id):
    policy = policy_of(env_id)
    result = evaluate(policy, 2, SEED, video_dir=str(tmp_path / "videos"))
    assert result.unwritten == ""
    assert len(brightness(tmp_path / "videos" / "rl-video-episode-0.mp4")) == result.lengths[0]


def test_a_video_that_cannot_be_written_costs_the_video(tmp_path, capsys):
    (tmp_path / "file").touch()
    result = evaluate(policy_of("tensor/CartPole-v1"), 1, SEED, video_dir=str(tmp_path / "file" / "videos"))
    assert result.unwritten.startswith(f"a video in {tmp_path}")
    assert "could not be written; it goes on without" in capsys.readouterr().err


def test_what_does_not_render_says_so(tmp_path):
    policy = policy_of("tests.fixtures.batches:Counting")
    with pytest.raises(ConfigError, match="rgb_array"):
        evaluate(policy, 1, SEED, video_dir=str(tmp_path / "videos"))
    with pytest.raises(ConfigError, match="human"):
        evaluate(policy_of("tensor/CartPole-v1"), 1, SEED, render_mode="human")


def make_four():
    return Counting(4)


def test_a_function_that_makes_a_fixed_number_plays_in_several_batches():
    result = evaluate(policy_of(f"{__name__}:make_four", 4), 10, SEED)
    assert (result.returns, result.lengths) == ([3, 4] * 5, [3, 4] * 5)


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)])
def test_a_picture_of_another_kind_costs_the_video(tmp_path, monkeypatch, picture):
    monkeypatch.setattr(CartPole, "render", lambda self, state: picture)
    result = evaluate(policy_of("tensor/CartPole-v1"), 1, SEED, video_dir=str(tmp_path / "videos"))
    assert "render returned an array of shape" in result.unwritten
    assert len(result.returns) == 1
