import json

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from gymnasium.wrappers import NormalizeReward

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.normalize import RewardScale, RunningMoments
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.config import SCRIPT_CONFIGS, Config, TorchConfig
from fabric_ppo.envs.spaces import Packer, env_spec
from fabric_ppo.ppo.update import _is_too_far
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.group import Ranks
from fabric_ppo.rollouts.evaluate import evaluate
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
def test_three_ranks_know_what_all_of_them_saw(tmp_path, monkeypatch, share_data):
    """The toy's observations are known in advance: the statistics follow from the seeds.

    And from what each environment has written down itself, all of it at once: those of rewards too.
    """
    monkeypatch.setenv("RECORD_DIR", str(tmp_path))
    flags = {"num_envs": 2, "total_timesteps": 84, "normalize_observations": True, "normalize_rewards": True}
    flags |= {"env_id": toy_env(length=5), "env_wrapper": "tests.toy_envs:recorded", "gamma": 0.9}
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
        mean, std = moments.mean_and_std()
        assert moments.count.item() == len(data) == 84
        np.testing.assert_allclose(mean, np.mean(data, 0), rtol=1e-12)
        np.testing.assert_allclose(std, np.sqrt(np.var(data, 0) + 1e-8), rtol=1e-9)
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


MIXED = "tests.nested_envs:Mixed-v0"


def seen_by(env_id, count):
    """A space, and what is seen in an episode after the other."""
    env, obs = gymnasium.make(env_id), []
    while len(obs) < count:
        now, ended = env.reset(seed=len(obs))[0], False
        while not ended and len(obs) < count:
            obs.append(now)
            mask = now.get("action_mask", np.ones(3, np.int8))
            now, _, ended, *_ = env.step(int(mask.argmax()))
    return env, obs


@pytest.mark.parametrize(
    ("env_id", "encoder"), [("tests.nested_envs:Nested-v0", "flatten"), (MIXED, "flatten"), (MIXED, "impala")]
)
def test_the_boxes_of_nested_observations_are_normalised(env_id, encoder):
    """Each part as Gymnasium flattens it; Boxes less their mean over their deviation, choices and masks as they are."""
    env, obs = seen_by(env_id, 40)
    spec = env_spec(env_id, env.observation_space, env.action_space)
    agent = make_agent(spec, Config(env_id=env_id, encoder=encoder, normalize_observations=True))
    packed = torch.from_numpy(np.stack([Packer(spec.observation)(each) for each in obs]))
    agent.absorb(agent.obs_moments.sums(agent.encoder.boxes(packed, torch.float64)))
    expected = []
    for path, part in spec.observation.parts:
        space, values = env.observation_space, obs
        for key in path:
            space, values = space[key], [each[key] for each in values]
        flat = np.stack([spaces.flatten(space, each) for each in values]).astype(np.float64)
        if path == ("camera",):
            if encoder == "impala":
                continue
            flat = flat / 255
        if part.kind == "box" and path != ("action_mask",):
            flat = ((flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-8)).clip(-10, 10)
        expected.append((path == ("action_mask",), flat))
    expected = np.concatenate([flat for _, flat in sorted(expected, key=lambda pair: pair[0])], 1)
    with torch.no_grad():
        got = agent.encode(packed)
        own = got.shape[1] - expected.shape[1]  # the network's features, of the first part
        assert own == (256 if encoder == "impala" else 0)
        np.testing.assert_allclose(got[:, own:], expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(agent.features(agent.prepare(packed)), got)
    assert agent.obs_moments.count.item() == 40


@pytest.mark.parametrize(("env_id", "encoder"), [("tests.nested_envs:Nested-v0", "auto"), (MIXED, "impala")])
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


@pytest.mark.parametrize(
    ("env_id", "encoder"),
    [("FrozenLake-v1", "auto"), ("tests.nested_envs:Images-v0", "auto"), ("CartPole-v1", "tests.nested_envs:Linear")],
)
def test_where_there_is_nothing_to_normalise_it_is_refused(env_id, encoder):
    env = gymnasium.make(env_id)
    spec = env_spec(env_id, env.observation_space, env.action_space)
    with pytest.raises(ConfigError, match=r"^--normalize-observations: a Box is expected among the observations, "):
        make_agent(spec, Config(env_id=env_id, encoder=encoder, normalize_observations=True))


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


@pytest.mark.parametrize(("here", "there", "ends"), [(0.02, 0.0, False), (0.0, 0.02, False), (0.031, 0.0, True)])
def test_what_counts_is_the_mean_over_ranks(here, there, ends):
    """Both ranks see the same, whichever has moved further: beyond 1.5 times the target of 0.01 in the mean."""
    for own, other in ((here, there), (there, here)):
        ranks = Ranks(0, 2, lambda tensor, other=other: torch.stack([tensor, torch.tensor(other)]))
        assert _is_too_far(torch.tensor(own), Config(target_kl=0.01), ranks) is ends


def test_a_target_that_is_not_reached_changes_nothing(tmp_path):
    for name, target in (("far", 1e9), ("none", None)):
        assert run_ranks("torch", [config(tmp_path, name, total_timesteps=84, target_kl=target)]) == [""]
    assert (tmp_path / "far/policy.safetensors").read_bytes() == (tmp_path / "none/policy.safetensors").read_bytes()
