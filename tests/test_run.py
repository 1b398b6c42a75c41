"""A run's folder: nobody else's, never left empty; and what is on record when the test at the end fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import train_torch
from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.run import run as run_module
from tests.runs import ROOT, clean_environment, run_ranks


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.time, "strftime", lambda _: "2026-01-02_03-04-05")
    config = Config(log_dir=str(tmp_path))
    names = [run_module.new_run_dir(config, "torch").name for _ in range(3)]
    first = "2026-01-02_03-04-05_CartPole-v1_default_42"
    assert names == [first, f"{first}_2", f"{first}_3"]


def test_all_ranks_have_rank_zeros_folder(tmp_path, monkeypatch):
    """Also where a second begins between their starts."""
    monkeypatch.setattr(run_module.time, "strftime", lambda _: f"second_{os.environ['RANK']}")
    config = Config(
        log_dir=str(tmp_path), profile=True, num_steps=8, num_envs=1, total_timesteps=16, test_episodes=1, num_threads=1
    )
    assert run_ranks("fabric", [config] * 2) == ["", ""]
    (folder,) = tmp_path.glob("fabric_logs/*")
    assert folder.name.startswith("second_0")
    assert len(list(folder.glob("trace_rank_?.json"))) == 2


def test_a_folder_that_stays_empty_goes_with_its_process(tmp_path):
    code = "from fabric_ppo.run import new_run_dir; from fabric_ppo.config import Config\n"
    code += "path = new_run_dir(Config(), 'torch'); print(path.is_dir())"
    args, env = [sys.executable, "-c", code], clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout == "True\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_test_that_fails_leaves_policy_and_summary(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise EnvironmentFault("test episode 0: step raised")

    monkeypatch.setattr(run_module, "evaluate", fail)
    config = TorchConfig(num_steps=8, total_timesteps=32, update_epochs=1, num_threads=1, run_dir=str(tmp_path / "run"))
    with pytest.raises(EnvironmentFault):
        train_torch.main(config)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["env_steps"], summary["test"]) == (32, {})
    assert (tmp_path / "run/policy.safetensors").is_file()
