import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.wrappers import NormalizeReward

from fabric_ppo.config import TorchConfig
from fabric_ppo.evaluate import load_agent
from fabric_ppo.normalize import RewardScale, RunningMoments
from fabric_ppo.seeding import episode_seed
from tests.runs import run_ranks
from tests.toy_envs import encode, toy_env


@pytest.mark.parametrize("splits", [(60,), (1, 59), (20, 13, 27)])
def test_moments_are_those_of_all_rows_at_once(splits):
    rows = torch.randn(60, 5) * torch.tensor([1e-3, 1.0, 50.0, 7.0, 1.0]) + torch.tensor([0.0, 3.0, -100.0, 9.0, 0.0])
    moments = RunningMoments(5)
    for part in rows.split(splits):
        moments.absorb(moments.sums(part))
    mean, std = moments.mean_and_std()
    data = rows.double().numpy()
    np.testing.assert_allclose(mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, np.sqrt(data.var(0) + 1e-8), rtol=1e-9)
    expected = ((data - data.mean(0)) / np.sqrt(data.var(0) + 1e-8)).clip(-10, 10)
    np.testing.assert_allclose(moments.normalizer(torch.float64)(rows.double()), expected, rtol=1e-8, atol=1e-9)


def test_nothing_seen_changes_nothing():
    rows = torch.randn(4, 3)
    assert torch.equal(RunningMoments(3).normalizer(torch.float32)(rows), rows)
    assert torch.equal(RewardScale(0.9).scaled(rows), rows)


def test_outliers_are_bounded():
    moments = RunningMoments(1)
    moments.absorb(moments.sums(torch.tensor([[-1.0], [1.0]])))
    assert moments.normalizer(torch.float32)(torch.tensor([[1e6], [-1e6]])).tolist() == [[10.0], [-10.0]]


def test_rewards_are_scaled_like_gymnasium_scales_them():
    """Statistics of discounted returns as in NormalizeReward, all of whose steps were seen before."""
    env = NormalizeReward(gymnasium.make("Pendulum-v1"), gamma=0.9)
    raw = gymnasium.make("Pendulum-v1")
    env.reset(seed=3)
    raw.reset(seed=3)
    action, rewards = np.zeros(1, np.float32), []
    for _ in range(150):
        _, scaled, *_ = env.step(action)
        rewards.append(raw.step(action)[1])
    scale = RewardScale(0.9)
    so_far, carried = scale.discounted(
        torch.tensor(rewards).unsqueeze(1), torch.zeros(150, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.float64)
    )
    scale.absorb(scale.sums(so_far))
    assert float(carried) == pytest.approx(sum(0.9 ** (149 - t) * r for t, r in enumerate(rewards)))
    assert float(scale.scaled(torch.tensor(rewards[-1]))) == pytest.approx(float(scaled), rel=1e-2)  # its prior: 1e-4


def test_discounted_returns_end_with_their_episode():
    rewards = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    ended = torch.tensor([[False, True], [False, False], [True, False]])
    so_far, carried = RewardScale(0.5).discounted(rewards, ended, torch.tensor([8.0, 0.0], dtype=torch.float64))
    assert so_far.tolist() == [[5.0, 1.0], [4.5, 2.0], [6.25, 5.0]]
    assert carried.tolist() == [0.0, 5.0]


def config(tmp_path, name, **flags):
    common = {"num_steps": 7, "per_rank_batch_size": 4, "update_epochs": 2, "test_episodes": 1, "num_threads": 1}
    return TorchConfig(**common | {"run_dir": str(tmp_path / name)} | flags)


@pytest.mark.parametrize("share_data", [False, True])
def test_three_ranks_know_what_all_of_them_saw(tmp_path, share_data):
    """The toy's observations are known in advance: the statistics follow from the seeds."""
    flags = {"num_envs": 2, "total_timesteps": 84, "normalize_observations": True, "normalize_rewards": True}
    settings = config(tmp_path, "run", env_id=toy_env(length=5), share_data=share_data, **flags)
    assert run_ranks("torch", [settings] * 3) == [""] * 3
    seen = [
        encode("float32", episode_seed(42, env, step // 5, 6), step % 5).flatten()
        for env in range(6)
        for step in range(14)
    ]
    moments = load_agent(tmp_path / "run")._agent.obs_moments
    mean, std = moments.mean_and_std()
    assert moments.count.item() == 84
    np.testing.assert_allclose(mean, np.mean(seen, 0, np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, np.sqrt(np.var(np.array(seen, np.float64), 0) + 1e-8), rtol=1e-9)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_player_normalises_for_its_trainers(tmp_path, overlap):
    """Without overlap the decoupled script learns what the coupled one does."""
    from fabric_ppo.config import DecoupledConfig

    flags = {"env_id": "Pendulum-v1", "num_envs": 2, "total_timesteps": 42} | {
        "normalize_observations": True,
        "normalize_rewards": True,
        "share_data": True,
    }
    coupled = config(tmp_path, "coupled", **flags)
    common = {name: getattr(coupled, name) for name in ("num_steps", "per_rank_batch_size", "update_epochs")}
    decoupled = DecoupledConfig(
        **common | flags | {"run_dir": str(tmp_path / "run"), "test_episodes": 1, "num_threads": 1, "overlap": overlap}
    )
    assert run_ranks("decoupled", [decoupled] * 2) == [""] * 2
    assert run_ranks("torch", [coupled]) == [""]
    ours, theirs = (load_agent(tmp_path / name)._agent.state_dict() for name in ("run", "coupled"))
    assert ours["obs_moments.count"].item() == theirs["obs_moments.count"].item() == 42
    same = all(torch.allclose(ours[name].double(), theirs[name].double(), rtol=1e-4, atol=1e-4) for name in ours)
    assert same != overlap


def test_a_resumed_run_has_the_same_statistics(tmp_path):
    flags = {"env_id": "Pendulum-v1", "normalize_observations": True, "normalize_rewards": True}
    whole = config(tmp_path, "whole", total_timesteps=84, **flags)
    part = config(tmp_path, "part", total_timesteps=42, anneal_lr=False, **flags)
    rest = config(tmp_path, "part", total_timesteps=84, anneal_lr=False, resume=True, **flags)
    whole = config(tmp_path, "whole", total_timesteps=84, anneal_lr=False, **flags)
    for each in (whole, part, rest):
        assert run_ranks("torch", [each]) == [""]
    assert (tmp_path / "whole/policy.safetensors").read_bytes() == (tmp_path / "part/policy.safetensors").read_bytes()


@pytest.mark.parametrize("share_data", [False, True])
def test_epochs_end_early_on_all_ranks_alike(tmp_path, share_data):
    flags = {"target_kl": 1e-9, "learning_rate": 0.1, "update_epochs": 50, "total_timesteps": 84, "num_envs": 3}
    settings = config(tmp_path, "run", share_data=share_data, **flags)
    assert run_ranks("torch", [settings] * 2) == [""] * 2
    summary = yaml.safe_load((tmp_path / "run/summary.json").read_text())
    assert summary["gradient_steps"] == 2 * 6  # an epoch for each update


def test_a_target_that_is_not_reached_changes_nothing(tmp_path):
    for name, target in (("far", 1e9), ("none", None)):
        assert run_ranks("torch", [config(tmp_path, name, total_timesteps=84, target_kl=target)]) == [""]
    assert (tmp_path / "far/policy.safetensors").read_bytes() == (tmp_path / "none/policy.safetensors").read_bytes()
