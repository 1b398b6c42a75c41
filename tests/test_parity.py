"""H1: the raw PyTorch and the Fabric script end with the same bits. H2: how environments are spread does not matter."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from safetensors.torch import load_file

from fabric_ppo.config import Config, TorchConfig
from tests.runs import command, run, run_ranks

TINY = {"num_steps": 24, "total_timesteps": 10**6, "update_epochs": 2, "per_rank_batch_size": 11, "test_episodes": 1}


def trained(script: str, run_dir, world_size: int, updates: int, precision=None, **flags):
    """Weights' file, and the logged scalars without those that tell time."""
    kind = TorchConfig if script == "torch" else Config
    flags = TINY | flags
    steps = flags["num_steps"] * flags.get("num_envs", 2) * world_size
    config = kind(**flags | {"total_timesteps": steps * updates, "run_dir": str(run_dir), "num_threads": 1})
    assert run_ranks(script, [config] * world_size, precision) == [""] * world_size
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    scalars = [{key: value for key, value in line.items() if not key.startswith("Time/")} for line in lines]
    return run_dir / "policy.safetensors", scalars


@pytest.mark.parametrize(
    ("world_size", "env_id", "share_data"),
    [
        (1, "CartPole-v1", False),
        (1, "Pendulum-v1", True),
        (2, "CartPole-v1", True),
        (2, "Pendulum-v1", False),
        (3, "CartPole-v1", False),
        (3, "Pendulum-v1", True),
    ],
)
def test_torch_and_fabric_end_with_the_same_bits(tmp_path, world_size, env_id, share_data):
    flags = {"env_id": env_id, "share_data": share_data, "ortho_init": True}
    policies, scalars = zip(
        *(trained(script, tmp_path / script, world_size, 4, **flags) for script in ("torch", "fabric")), strict=True
    )
    assert policies[0].read_bytes() == policies[1].read_bytes()
    assert scalars[0] == scalars[1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_scripts_end_with_the_same_bits(tmp_path):
    """As processes of their own: a fork would inherit the compiler's threads from another test."""
    flags = [
        "--compile",
        "--num-steps",
        "24",
        "--total-timesteps",
        "96",
        "--update-epochs",
        "2",
        "--test-episodes",
        "1",
    ]
    for script in ("torch", "fabric"):
        done = run(command(script, 0, *flags, "--run-dir", script), tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^--compile took \d+\.\d s$", done.stderr, re.MULTILINE)
    policies = [(tmp_path / script / "policy.safetensors").read_bytes() for script in ("torch", "fabric")]
    assert policies[0] == policies[1]


@pytest.mark.parametrize(
    ("env_id", "more"),
    [("CartPole-v1", {}), ("Pendulum-v1", {}), ("Pendulum-v1", {"log_std_min": 0.0, "log_std_max": 0.0})],
)
def test_spreading_environments_over_ranks_changes_nothing(tmp_path, env_id, more):
    flags = {"env_id": env_id, "share_data": True, "precision": "64-true"} | more
    spread = {(1, 4): 12, (2, 2): 6, (4, 1): 3}
    weights = [
        load_file(trained("fabric", tmp_path / f"{w}x{m}", w, 1, num_envs=m, per_rank_batch_size=b, **flags)[0])
        for (w, m), b in spread.items()
    ]
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            assert tensor.dtype.itemsize == 8
            assert (tensor - other[name]).abs().max() < 1e-9


def test_the_gradient_of_every_rank_counts(tmp_path):
    """Two ranks that share data do not end where one rank with the same environments and half the data would."""
    both = load_file(trained("torch", tmp_path / "both", 2, 1, num_envs=1)[0])
    alone = load_file(trained("torch", tmp_path / "alone", 1, 1, num_envs=1)[0])
    assert any((both[name] - alone[name]).abs().max() > 1e-6 for name in both)


def test_different_flags_on_different_ranks_are_named(tmp_path):
    configs = [TorchConfig(**TINY, run_dir=str(tmp_path / "run"), gamma=gamma) for gamma in (0.99, 0.9)]
    for said in run_ranks("torch", configs):
        assert "ConfigError: rank 0 and rank 1 were started with different flags: --gamma 0.99 and 0.9" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["torch", "fabric"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_steps", "num_envs", "batch", "share"), [(1, 1, 64, True), (5, 3, 4, True), (7, 1, 2, False)]
)
def test_no_odd_count_of_rows_hangs(tmp_path, script, world_size, num_steps, num_envs, batch, share):
    """H7: every rank takes the same number of minibatches, whatever does not divide."""
    flags = {"num_steps": num_steps, "num_envs": num_envs, "per_rank_batch_size": batch, "share_data": share}
    _, scalars = trained(script, tmp_path / "run", world_size, 2, **flags)
    assert [line["step"] for line in scalars] == [num_steps * num_envs * world_size * update for update in (1, 2)]
