"""Player and trainers: H3, the overlapped objective, placement, uneven parts, and what a dead process does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fabric_ppo.agents.make import make_agent
from fabric_ppo.architectures.placement import Placement, place
from fabric_ppo.config import Config, DecoupledConfig
from fabric_ppo.envs.make import make_envs
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.loss import losses_of
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.group import ALONE
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.rollouts.values import revalue
from tests.runs import command, run, run_ranks
from tests.toy_envs import toy_env

TINY = {"num_steps": 24, "update_epochs": 2, "per_rank_batch_size": 11, "test_episodes": 1, "num_threads": 1}


def decoupled(run_dir, num_trainers, updates, precision=None, **flags):
    """Weights' file and logged lines of a run."""
    flags = TINY | {"num_envs": 4} | flags
    total = flags["num_steps"] * flags["num_envs"] * updates
    config = DecoupledConfig(**flags, total_timesteps=total, run_dir=str(run_dir))
    ranks = run_ranks("decoupled", [config] * (num_trainers + 1), precision)
    assert ranks == [""] * (num_trainers + 1), ranks
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return run_dir / "policy.safetensors", lines


@pytest.mark.parametrize("num_trainers", [1, 2, 3])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_shared_data_ends_where_the_coupled_script_does(tmp_path, num_trainers, env_id):
    """H3: as many ranks as trainers on the same environments, in float64."""
    ours, _ = decoupled(tmp_path / "d", num_trainers, 1, "64-true", env_id=env_id, share_data=True, num_envs=6)
    coupled = Config(
        **TINY,
        num_envs=6 // num_trainers,
        total_timesteps=24 * 6,
        env_id=env_id,
        share_data=True,
        run_dir=str(tmp_path / "c"),
    )
    assert run_ranks("fabric", [coupled] * num_trainers, "64-true") == [""] * num_trainers
    expected = load_file(tmp_path / "c" / "policy.safetensors")
    for name, tensor in load_file(ours).items():
        assert tensor.dtype == torch.float64
        assert (tensor - expected[name]).abs().max() < 1e-9


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("share_data", [False, True])
def test_a_seed_gives_the_same_bits_from_run_to_run(tmp_path, overlap, share_data):
    policies = [
        decoupled(tmp_path / name, 2, 4, overlap=overlap, share_data=share_data)[0].read_bytes() for name in "ab"
    ]
    assert policies[0] == policies[1]


def test_overlapping_lags_one_policy_behind(tmp_path):
    ours, lines = decoupled(tmp_path / "o", 1, 4, overlap=True)
    other, plain = decoupled(tmp_path / "a", 1, 4)
    assert [line["Info/policy_lag"] for line in lines] == [0, 1, 1, 1]
    assert [line["Info/policy_lag"] for line in plain] == [0, 0, 0, 0]
    assert ours.read_bytes() != other.read_bytes()
    # the first rollout and update are the same: only what is collected meanwhile differs
    assert lines[0]["Loss/policy_loss"] == plain[0]["Loss/policy_loss"]
    for line in lines:
        assert 0 <= line["Time/player_idle"] <= 1
        assert 0 <= line["Time/trainer_idle"] <= 1


@pytest.mark.parametrize("num_trainers", [1, 2, 3])
@pytest.mark.parametrize(("num_steps", "num_envs", "batch"), [(1, 3, 1), (5, 1, 2), (13, 5, 32), (13, 5, 64)])
def test_no_count_of_rows_hangs(tmp_path, num_trainers, num_steps, num_envs, batch):
    """Parts of 65 rows over 2 trainers are 33 and 32: with 32 a minibatch, one of them would fill two."""
    for share_data in (False, True):
        flags = {"num_steps": num_steps, "num_envs": num_envs, "per_rank_batch_size": batch, "share_data": share_data}
        _, lines = decoupled(tmp_path / f"run{share_data}", num_trainers, 2, **flags)
        assert len(lines) == 2


def collected_with_another_policy(env_id):
    """A rollout, collected by one agent and revalued by another; the buffer; both agents."""
    config = Config(env_id=env_id, num_envs=3, num_steps=40, normalize_advantages=False)
    envs = make_envs(config, 0, 1)
    behaviour = make_agent(envs.spec, config)
    proximal = make_agent(envs.spec, replace(config, seed=7))
    buffer = RolloutBuffer(envs, behaviour, config.num_steps, 0)
    rollout = collect(envs, behaviour, buffer, config.seed, 0)
    envs.close()
    return config, behaviour, proximal, rollout, revalue(proximal, buffer, rollout)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_revaluing_a_rollout(env_id):
    _, behaviour, proximal, rollout, later = collected_with_another_policy(env_id)
    obs, actions = rollout.obs.flatten(0, 1), rollout.actions.flatten(0, 1)
    with torch.no_grad():
        old, new = (agent.log_probs_and_values(obs, actions)[0].view(40, 3) for agent in (behaviour, proximal))
        values = proximal.values(obs).view(40, 3)
    torch.testing.assert_close(rollout.log_probs, old)
    torch.testing.assert_close(later.log_probs, new)
    torch.testing.assert_close(later.importance, (new - old).exp())
    torch.testing.assert_close(later.values, values)
    inside = ~(rollout.terminated | rollout.truncated)[:-1]
    torch.testing.assert_close(later.next_values[:-1][inside], values[1:][inside])
    assert (rollout.importance == 1).all()


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
def test_the_same_policy_sees_a_rollout_as_it_was_collected(ends, shared_trunk):
    """Inside episodes, where they end and where the rollout does."""
    config = Config(env_id=toy_env(length=5, ends=ends), num_envs=3, num_steps=32, shared_trunk=shared_trunk)
    envs = make_envs(config, 0, 1)
    agent = make_agent(envs.spec, config).double()
    buffer = RolloutBuffer(envs, agent, config.num_steps, 0)
    rollout = collect(envs, agent, buffer, config.seed, 0)
    envs.close()
    unknown = torch.full_like(rollout.values, torch.nan)
    again = revalue(agent, buffer, replace(rollout, values=unknown, next_values=unknown))
    assert rollout.truncated.any() == (ends != "terminated")
    for name in ("log_probs", "importance", "values", "next_values"):
        torch.testing.assert_close(
            getattr(again, name), getattr(rollout, name), msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_overlapped_objective_is_the_decoupled_objective(env_id):
    """ArXiv 2110.00641, equation 5, written out: E[prox/behaviour * min(r A, clip(r) A)] with r = policy/prox."""
    config, behaviour, _, rollout, later = collected_with_another_policy(env_id)
    policy = make_agent(behaviour.spec, replace(config, seed=11))
    batch = make_batch(later, config, ALONE, 0, torch.device("cpu"))
    rows = batch.rows._replace(weights=batch.rows.weights / len(batch.rows.weights))
    loss = losses_of(rows, policy(rows.obs, rows.actions), config).policy_loss
    plain = make_batch(replace(later, importance=torch.ones_like(later.importance)), config, ALONE, 0, rows.obs.device)
    with torch.no_grad():
        now = policy.log_probs_and_values(rows.obs, rows.actions)[0]
    r = (now - later.log_probs.flatten()).exp()
    advantages = plain.rows.advantages
    surrogate = torch.minimum(r * advantages, r.clamp(0.8, 1.2) * advantages)
    expected = -((later.log_probs - rollout.log_probs).flatten().exp() * surrogate).mean()
    torch.testing.assert_close(loss, expected)


def test_placement():
    cpu = Placement("cpu", 0, "gloo", "gloo")
    assert [place(rank, False, False) for rank in range(3)] == [cpu] * 3
    assert [place(rank, True, False) for rank in range(3)] == [
        Placement("cpu", 0, "gloo", "nccl"),
        Placement("cuda", 0, "gloo", "nccl"),
        Placement("cuda", 1, "gloo", "nccl"),
    ]
    assert [place(rank, True, True) for rank in range(3)] == [Placement("cuda", k, "nccl", "nccl") for k in range(3)]
    assert place(2, True, False).packets_on == torch.device("cpu")
    assert place(2, True, True).packets_on == torch.device("cuda", 2)


def test_launches_that_cannot_work_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="a player and at least one trainer are needed"):
        DecoupledConfig().check_launch(1, 1)
    with pytest.raises(ConfigError, match="3 rows; at least 4, a row for each trainer"):
        DecoupledConfig(num_steps=3, num_envs=1).check_launch(5, 5)
    with pytest.raises(ConfigError, match="--player-on-gpu: --cuda is needed too"):
        DecoupledConfig(player_on_gpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    DecoupledConfig(cuda=True).check_launch(3, 3)
    with pytest.raises(ConfigError, match="--cuda: 3 CUDA devices are needed here, 2 found"):
        DecoupledConfig(cuda=True).check_launch(4, 4)
    with pytest.raises(ConfigError, match="--cuda: 3 CUDA devices are needed here, 2 found"):
        DecoupledConfig(cuda=True, player_on_gpu=True).check_launch(3, 3)


@pytest.mark.parametrize("accelerator", [(), ("--accelerator=cpu",)])
def test_the_script_runs_as_it_is_launched(tmp_path, accelerator):
    flags = ("--num-envs", "4", "--num-steps", "16", "--total-timesteps", "130", "--test-episodes", "1")
    args = command("fabric_decoupled", 3, *flags)
    args = [arg for arg in args if not arg.startswith(("--strategy", "--accelerator"))]
    done = run([*args[:2], *accelerator, *args[2:]], tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / "fabric_decoupled_logs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["script"], summary["world_size"], summary["env_steps"]) == ("fabric_decoupled", 3, 128)
    assert list(folder.glob("events.out.tfevents.*"))
