"""Runs in EnvPool's environments."""

from __future__ import annotations

import json

import pytest

from fabric_ppo.config import Config, DecoupledConfig, TorchConfig
from tests.fixtures.configs import tiny
from tests.fixtures.launching import command, run, run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting.*")
FLAGS = tiny(env_backend="envpool", num_envs=4)


pytest.importorskip("envpool", reason="EnvPool needs Python 3.11")


def trained(script, run_dir, world_size, updates=3, **flags):
    """A run's weights file, and its logged scalars without those that tell time."""
    flags = FLAGS | {"total_timesteps": 32 * 4 * world_size * updates} | flags
    config = (TorchConfig if script == "torch" else Config)(**flags, run_dir=str(run_dir))
    assert run_ranks(script, [config] * world_size) == [""] * world_size
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    scalars = [{key: value for key, value in line.items() if not key.startswith("Time/")} for line in lines]
    return run_dir / "policy.safetensors", scalars


@pytest.mark.parametrize(
    ("world_size", "env_id", "share_data"),
    [(1, "CartPole-v1", False), (2, "CartPole-v1", True), (2, "Pendulum-v1", False)],
)
def test_torch_and_fabric_end_with_the_same_bits(tmp_path, world_size, env_id, share_data):
    flags = {"env_id": env_id, "share_data": share_data}
    policies, scalars = zip(
        *(trained(script, tmp_path / script, world_size, **flags) for script in ("torch", "fabric")), strict=True
    )
    assert policies[0].read_bytes() == policies[1].read_bytes()
    assert scalars[0] == scalars[1]
    if env_id == "CartPole-v1":
        assert 0 < scalars[0][-1]["step"] < 3 * 32 * 4 * world_size  # transitions only


@pytest.mark.parametrize("overlap", [False, True])
def test_trainers_cope_with_rows_that_are_no_transitions(tmp_path, overlap):
    """Each of two trainers gets a part of the rows, in minibatches so small that some hold no transition at all."""
    flags = FLAGS | {"num_envs": 2, "num_steps": 16, "total_timesteps": 32 * 8, "per_rank_batch_size": 1}
    config = DecoupledConfig(**flags, overlap=overlap, run_dir=str(tmp_path / "run"))
    assert run_ranks("decoupled", [config] * 3) == [""] * 3
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["updates"] == 8
    assert 200 < summary["env_steps"] < 256


def test_a_resumed_run_begins_new_episodes_and_reports_it(tmp_path, capfd):
    """It stays with EnvPool, and goes on where it was but for the episodes in progress."""
    steps = 32 * 4
    trained("torch", tmp_path / "run", 1, updates=2)
    flags = FLAGS | {"run_dir": str(tmp_path / "run"), "resume": True, "total_timesteps": steps * 4}
    (error,) = run_ranks("torch", [TorchConfig(**flags | {"env_backend": "sync"})])
    assert "--env-backend sync (the run has envpool)" in error
    assert run_ranks("torch", [TorchConfig(**flags)]) == [""]
    assert "CartPole-v1 cannot be resumed exactly: environment 0: EnvPool" in capfd.readouterr().err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["updates"], summary["resumes"], summary["exact_resume"]) == (4, 1, False)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2, 3, 4]
    assert summary["env_steps"] == lines[-1]["step"] < steps * 4


def test_a_run_records_its_test_only(tmp_path):
    """Under no launcher: episodes in EnvPool cannot be seen, and the last lines name the videos."""
    flags = {"env_backend": "envpool", "num_envs": 4, "num_steps": 32, "total_timesteps": 256, "test_episodes": 1}
    words = [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]
    done = run(command("torch", 0, *words, "--capture-video", "--run-dir", "run"), tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert 200 < summary["env_steps"] < 256
    assert summary["test"]["episodes"] == 1
    assert list((tmp_path / "run/test_videos").glob("*.mp4"))
    assert not (tmp_path / "run/train_videos").exists()
    assert f"videos  {tmp_path / 'run/test_videos'}\n" in done.stdout
    assert "WARN" not in done.stderr
