"""Running statistics and early ends of epochs, in whole runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.config import SCRIPT_CONFIGS, DecoupledConfig, TorchConfig
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import episode_seed
from tests.fixtures.configs import tiny
from tests.fixtures.launching import run_ranks
from tests.fixtures.toy_envs import encode, toy_env

MIXED = "tests.fixtures.nested_envs:Mixed-v0"


def config(tmp_path, name, **flags):
    common = tiny(num_steps=7, per_rank_batch_size=4, test_episodes=1)
    return TorchConfig(**common | {"run_dir": str(tmp_path / name)} | flags)


@pytest.mark.parametrize("share_data", [False, True])
def test_three_ranks_know_what_all_of_them_saw(tmp_path, monkeypatch, share_data):
    """The toy's observations are known in advance: the statistics follow from the seeds.

    And from what each environment has written down itself, all of it at once: those of rewards too.
    """
    monkeypatch.setenv("RECORD_DIR", str(tmp_path))
    flags = {"num_envs": 2, "total_timesteps": 84, "normalize_observations": True, "normalize_rewards": True}
    flags |= {"env_id": toy_env(length=5), "env_wrapper": "tests.fixtures.toy_envs:recorded", "gamma": 0.9}
    settings = config(tmp_path, "run", share_data=share_data, **flags)
    assert run_ranks("torch", [settings] * 3) == [""] * 3
    seen = [
        encode("float32", episode_seed(42, env, step // 5, 6), step % 5).flatten()
        for env in range(6)
        for step in range(14)
    ]
    agent = load_agent(tmp_path / "run")._agent
    obs, returns = recordings(tmp_path, {episode_seed(42, env, k, 6) for env in range(6) for k in range(3)}, 0.9)
    assert sorted(map(tuple, obs)) == sorted(map(tuple, np.array(seen, np.float64)))
    for moments, data in ((agent.obs_moments, obs), (agent.reward_scale, returns)):
        assert moments.count.item() == len(data) == 84
        np.testing.assert_allclose(moments.mean, np.mean(data, 0), rtol=1e-12)
        np.testing.assert_allclose(moments.std, np.sqrt(np.var(data, 0) + 1e-8), rtol=1e-9)
    assert np.std(returns) > 10


def recordings(folder, seeds, gamma):
    """Observations `[n, size]` and discounted returns so far `[n, 1]`, of the episodes that training began."""
    obs, returns = [], []
    for path in folder.glob("*.jsonl"):
        so_far = 0.0
        for line in path.read_text().splitlines():
            seed, seen, reward, ended = json.loads(line)
            if seed in seeds:
                so_far = gamma * so_far + reward
                obs.append(np.ravel(seen))
                returns.append([so_far])
                so_far = 0.0 if ended else so_far
    return np.array(obs), np.array(returns)


@pytest.mark.parametrize(("env_id", "encoder"), [("tests.fixtures.nested_envs:Nested-v0", "auto"), (MIXED, "impala")])
def test_the_architectures_normalise_nested_observations_alike(tmp_path, env_id, encoder):
    flags = {"env_id": env_id, "encoder": encoder, "normalize_observations": True, "num_envs": 2, "anneal_lr": False}
    flags |= {"num_steps": 8, "per_rank_batch_size": 8, "update_epochs": 2, "test_episodes": 1, "num_threads": 1}

    def result(script, world_size, name, total=48, **more):
        settings = SCRIPT_CONFIGS[script](**flags | more, total_timesteps=total, run_dir=str(tmp_path / name))
        assert run_ranks(script, [settings] * world_size) == [""] * world_size
        return (tmp_path / name / "policy.safetensors").read_bytes()

    whole = result("torch", 1, "torch")
    assert result("fabric", 1, "fabric") == whole
    assert result("decoupled", 2, "decoupled") == whole
    ahead = result("decoupled", 2, "overlap", overlap=True)
    for name, size, expected, more in (("torch", 1, whole, {}), ("decoupled", 2, ahead, {"overlap": True})):
        result(name, size, f"{name} part", 32, **more)
        assert result(name, size, f"{name} part", resume=True, **more) == expected
    policy = load_agent(tmp_path / "torch")
    assert policy._agent.obs_moments.count.item() == 48
    assert np.isfinite(evaluate(policy, 2, 0).returns).all()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_player_normalises_for_its_trainers(tmp_path, overlap):
    """Without overlap the decoupled script learns what the coupled one does."""
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
