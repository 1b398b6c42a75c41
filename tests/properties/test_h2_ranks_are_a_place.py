"""H2: how environments are spread over ranks does not matter."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import train_torch
from tests.fixtures.resuming import finish

pytestmark = pytest.mark.processes


def weights(script, world_size, run_dir, **flags):
    """Weights after one update."""
    return load_file(finish(script, world_size, run_dir, 1, num_steps=24, **flags) / "policy.safetensors")


@pytest.mark.parametrize(
    ("env_id", "more"),
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
        ("Pendulum-v1", {"log_std_min": 0.0, "log_std_max": 0.0}),
        ("tensor/CartPole-v1", {}),
    ],
)
def test_spreading_environments_over_ranks_changes_nothing(tmp_path, env_id, more):
    flags = {"env_id": env_id, "share_data": True, "precision": "64-true"} | more
    spread = {(1, 4): 12, (2, 2): 6, (4, 1): 3}
    first, *others = (
        weights("fabric", w, tmp_path / f"{w}x{m}", num_envs=m, per_rank_batch_size=b, **flags)
        for (w, m), b in spread.items()
    )
    for other in others:
        for name, tensor in first.items():
            assert tensor.dtype.itemsize == 8
            assert (tensor - other[name]).abs().max() < 1e-9


def test_the_gradient_of_every_rank_counts(tmp_path):
    """Two ranks that share data do not end where one rank with the same environments and half the data would."""
    both = weights("torch", 2, tmp_path / "both", num_envs=1)
    alone = weights("torch", 1, tmp_path / "alone", num_envs=1)
    assert any((both[name] - alone[name]).abs().max() > 1e-6 for name in both)


ENVS = "tests.fixtures.nested_envs"
LSTM = {"recurrent": "lstm", "recurrent_size": 24, "sequence_length": 16, "per_rank_batch_size": 32}
ACTING_PLAINLY = {
    "lstm": LSTM | {"env_id": "CartPole-v1"},
    "gru, box": LSTM | {"recurrent": "gru", "env_id": "Pendulum-v1", "normalize_observations": True},
    "masked": {"env_id": f"{ENVS}:Masked-v0"},
    "lstm, masked": LSTM | {"env_id": f"{ENVS}:Masked-v0"},
    "images": {"env_id": f"{ENVS}:Images-v0"},
}
"""Agents for which there is no array actor."""
BY_STEP = ("obs", "actions", "log_probs", "rewards", "terminated", "truncated", "valid", "begins", "memory")


def first_rollout(monkeypatch, world_size, run_dir, **flags):
    """The first rollout of all ranks, name -> `[T, W * M, ...]` by global environment."""
    collect, folder = train_torch.collect, run_dir.with_suffix(".rollout")
    folder.mkdir()

    def saved(agent, buffer, seed, update):
        rollout = collect(agent, buffer, seed, update)
        if update == 0:
            columns = {name: getattr(rollout, name).contiguous().clone() for name in BY_STEP}
            save_file(columns, folder / f"{buffer.first_env:03}")
        return rollout

    with monkeypatch.context() as patch:
        patch.setattr(train_torch, "collect", saved)
        finish("torch", world_size, run_dir, 1, num_steps=32, **flags)
    of_ranks = [load_file(path) for path in sorted(folder.iterdir())]
    assert len(of_ranks) == world_size
    return {name: torch.cat([each[name] for each in of_ranks], 1) for name in BY_STEP}


@pytest.mark.parametrize(("world_size", "num_envs"), [(2, 5), (3, 6)])
@pytest.mark.parametrize("agent", list(ACTING_PLAINLY))
def test_an_environment_sees_the_same_bits_however_many_others_there_are(
    tmp_path, monkeypatch, world_size, num_envs, agent
):
    """10 and 18 environments in one batch, beyond the 8 and 16 from which on products round alike, or in small ones."""
    flags, total = ACTING_PLAINLY[agent], world_size * num_envs
    spread = first_rollout(monkeypatch, world_size, tmp_path / "spread", num_envs=num_envs, **flags)
    together = first_rollout(monkeypatch, 1, tmp_path / "together", num_envs=total, **flags)
    assert spread["actions"].shape[:2] == (32, total)
    assert len(spread["actions"].unique()) > 1
    assert (spread["terminated"] | spread["truncated"]).any() or agent == "gru, box"
    for name, tensor in spread.items():
        assert torch.equal(tensor, together[name]), name
