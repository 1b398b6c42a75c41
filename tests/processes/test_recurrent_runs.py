"""Recurrent agents in whole runs."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.config import Config, DecoupledConfig
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.tools.export import export
from tests.fixtures.launching import run_ranks
from tests.fixtures.resuming import assert_a_killed_run_goes_on, finish, summary
from tests.fixtures.resuming import train as train_ranks

RECURRENT = {"recurrent": "lstm", "recurrent_size": 6, "sequence_length": 8, "per_rank_batch_size": 16}


@pytest.mark.parametrize(("size", "share_data", "kind"), [(1, False, "gru"), (2, False, "lstm"), (2, True, "lstm")])
def test_scripts_end_with_the_same_bits(tmp_path, size, share_data, kind):
    """H1."""
    flags = RECURRENT | {"recurrent": kind, "share_data": share_data, "env_id": "Pendulum-v1", "ortho_init": True}
    ends = [finish(script, size, tmp_path / script, 3, **flags) for script in ("torch", "fabric")]
    assert len({(each / "policy.safetensors").read_bytes() for each in ends}) == 1


@pytest.mark.parametrize("num_trainers", [1, 2])
def test_trainers_end_where_coupled_ranks_do(tmp_path, num_trainers):
    """H3, in float64."""
    flags = RECURRENT | {"share_data": True, "num_steps": 16, "update_epochs": 2, "test_episodes": 1, "num_threads": 1}
    decoupled = DecoupledConfig(**flags, num_envs=4, total_timesteps=64, run_dir=str(tmp_path / "d"))
    coupled = Config(**flags, num_envs=4 // num_trainers, total_timesteps=64, run_dir=str(tmp_path / "c"))
    assert run_ranks("decoupled", [decoupled] * (num_trainers + 1), "64-true") == [""] * (num_trainers + 1)
    assert run_ranks("fabric", [coupled] * num_trainers, "64-true") == [""] * num_trainers
    ours, theirs = (load_file(tmp_path / name / "policy.safetensors") for name in "dc")
    assert max((ours[name] - tensor).abs().max() for name, tensor in theirs.items()) < 1e-9


@pytest.mark.parametrize(
    ("script", "size", "flags"),
    [
        ("torch", 2, {"env_id": "Pendulum-v1", "normalize_observations": True}),
        ("fabric", 1, {"recurrent": "gru", "env_backend": "async"}),
        ("decoupled", 3, {"overlap": True}),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, script, size, flags):
    """H4: what the agent remembered is part of the checkpoint."""
    assert_a_killed_run_goes_on(tmp_path, monkeypatch, script, size, RECURRENT | flags)


RECALL = {"env_id": "tests.fixtures.mixed_envs:Recall-v0"}


@pytest.mark.parametrize(
    ("script", "size", "flags"),
    [
        ("torch", 1, {"recurrent": "gru", "env_backend": "async"}),
        ("fabric", 2, {"share_data": True}),
        ("decoupled", 2, {"overlap": True}),
    ],
)
def test_a_killed_run_with_masks_goes_on_to_the_same_bits(tmp_path, monkeypatch, script, size, flags):
    """H4, of a memory with action masks."""
    assert_a_killed_run_goes_on(tmp_path, monkeypatch, script, size, RECURRENT | RECALL | flags)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_memory_learns_behind_masks(tmp_path, kind):
    """Without it the best mean return is 1/2. The environment raises at an action that is impossible."""
    flags = {"recurrent": kind, "recurrent_size": 16, "sequence_length": 16, "per_rank_batch_size": 128}
    flags |= {"num_envs": 8, "num_steps": 48, "update_epochs": 8, "learning_rate": 5e-3, "gamma": 1.0}
    run_dir = finish("torch", 1, tmp_path, 25, **RECALL | flags | {"test_episodes": 100, "checkpoint_every": 25})
    assert summary(run_dir)["test"]["return_mean"] > 0.95
    policy = load_agent(run_dir)
    assert evaluate(policy, 100, 1, stochastic=True).to_dict()["return_mean"] > 0.9
    # what it exports remembers and masks, too: the same actions, greedy and sampled, in the environment
    for to, name in (("onnx", "policy.onnx"), ("torchscript", "policy.pt")):
        agreement = export(run_dir, to, tmp_path / name, verify_steps=200, own_code=True).agreement
        assert (agreement.holds, agreement.observations) == (True, 200)


@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_ranks_goes_on(tmp_path, before):
    """2 -> 1 and 1 -> 2 ranks, within rounding, as one run in float64."""
    after, ends = 3 - before, []
    for first in (before, after):
        run_dir = tmp_path / str(first)
        for size, updates in ((first, 3), (after, 6)):
            flags = RECURRENT | {"share_data": True, "num_envs": 4 // size, "per_rank_batch_size": 32 // size}
            flags |= {"anneal_lr": False, "resume": True}
            assert train_ranks("fabric", size, run_dir, updates, "64-true", **flags) == [""] * size
        ends.append(load_file(run_dir / "policy.safetensors"))
    assert max((ends[0][name] - tensor).abs().max() for name, tensor in ends[1].items()) < 1e-9
    assert summary(tmp_path / str(before))["exact_resume"] is False
