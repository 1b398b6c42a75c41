"""Whoever edits `ppo/loss.py` trains with the edited loss, and reads that the fast one steps aside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.config import TorchConfig
from tests.fixtures.copies import copy_of_the_repository, train_all_in
from tests.fixtures.launching import SCRIPTS, clean_environment
from tests.fixtures.processes import PATIENCE
from tests.fixtures.resuming import metrics

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


QUICK = ("--total-timesteps", "512", "--num-steps", "64", "--update-epochs", "3", "--test-episodes", "0")


@pytest.mark.parametrize("is_fast", [True, False], ids=["compiled", "autograd"])
def test_logged_parts_are_means_over_the_losses_of_minibatches(tmp_path, is_fast):
    """Whatever a loss computes them from: here from no row at all, so that they do not add up over rows."""
    copy = copy_of_the_repository(tmp_path / "edited")
    path = copy / "fabric_ppo/ppo/loss.py"
    text = path.read_text()
    edits = [("clip_fraction = torch.dot(rows.weights, is_clipped)", "clip_fraction = is_clipped.new_full((), 0.25)")]
    if not is_fast:
        calls = "    open(f'calls_{torch.initial_seed()}', 'a').write('.')\n"
        edits += [
            ("value_loss.detach(), entropy_loss", "value_loss.new_full((), 0.75), entropy_loss"),
            (
                "    log_ratio = new.log_probs - rows.log_probs\n",
                calls + "    log_ratio = new.log_probs - rows.log_probs\n",
            ),
        ]
    for old, new in edits:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    train_all_in(copy, *QUICK)
    for script in SCRIPTS:
        for line in metrics(copy / script):
            assert line["Info/clip_fraction"] == 0.25
            assert (line["Loss/value_loss"] == 0.75) == (not is_fast)
        said = "".join(each.read_text() for each in (copy / f"{script}_said").iterdir())
        assert said.count("; training follows this code, with autograd: for small networks 2 to 6 times as slow") == (
            not is_fast
        )
        assert said.count("--compile gets") == (not is_fast)
    if not is_fast:
        (calls,) = copy.glob("calls_*")
        # ranks with environments of their own, updates, epochs, minibatches of 64 rows
        each = [json.loads((copy / script / "summary.json").read_text())["gradient_steps"] for script in SCRIPTS]
        assert len(calls.read_text()) == sum(steps * ranks for steps, ranks in zip(each, (1, 2, 2), strict=True))
