"""Whoever edits `ppo/loss.py` trains with the edited loss, and reads that the fast one steps aside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.config import TorchConfig
from tests.fixtures.copies import copy_of_the_repository
from tests.fixtures.launching import clean_environment
from tests.fixtures.processes import PATIENCE

SHORT = ("--total-timesteps", "512", "--test-episodes", "1", "--run-dir", "run")
"""Two updates of 256 transitions in the default environment."""


def trained(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights of a run of the copy in `folder`, and the lines on stderr that name the loss's file."""
    words = [sys.executable, "train_torch.py", *SHORT]
    env = clean_environment(PYTHONPATH=str(folder))
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    named = [line for line in done.stderr.splitlines() if "ppo/loss.py" in line]
    return load_file(folder / "run/policy.safetensors"), named


def test_an_edited_loss_is_the_one_that_trains(tmp_path):
    """A loss times zero teaches nothing; unedited, the same copy learns, and there is nothing to tell."""
    copy = copy_of_the_repository(tmp_path / "edited")
    path = copy / "fabric_ppo/ppo/loss.py"
    edited, count = re.subn(r"^    loss = (policy_loss \+ .*)$", r"    loss = (\1) * 0", path.read_text(), flags=re.M)
    assert count == 1
    path.write_text(edited)
    weights, named = trained(copy)
    initial = make_agent(load_agent(copy / "run").spec, TorchConfig()).state_dict()
    assert weights.keys() == initial.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in initial.items())
    assert len(named) == 1

    learnt, named = trained(copy_of_the_repository(tmp_path / "unedited"))
    assert learnt.keys() == initial.keys()
    assert not any(torch.equal(learnt[name], tensor) for name, tensor in initial.items())
    assert named == []
