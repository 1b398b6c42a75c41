"""What is on record when the test at the end of a run fails."""

from __future__ import annotations

import json

import pytest

import train_torch
from fabric_ppo.config import TorchConfig
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.run import evaluation


def test_a_test_that_fails_leaves_policy_and_summary(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise EnvironmentFault("test episode 0: step raised")

    monkeypatch.setattr(evaluation, "evaluate", fail)
    config = TorchConfig(num_steps=8, total_timesteps=32, update_epochs=1, num_threads=1, run_dir=str(tmp_path / "run"))
    with pytest.raises(EnvironmentFault):
        train_torch.main(config)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["env_steps"], summary["test"]) == (32, {})
    assert (tmp_path / "run/policy.safetensors").is_file()
