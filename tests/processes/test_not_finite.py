"""Numbers that are not finite: a run stops, and what is on disk goes on."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fabric_ppo.agents.normalize import RunningMoments
from fabric_ppo.ppo import advantages
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run.checkpoint import newest_first
from fabric_ppo.seeding import evaluation_seed
from tests.fixtures.launching import SCRIPTS
from tests.fixtures.resuming import (
    assert_same_run,
    checkpoints,
    finish,
    metrics,
    train,
)
from tests.fixtures.toy_envs import toy_env


def intact(run_dir: Path) -> list[int]:
    """The updates of the checkpoints; every file there is one, whole."""
    for path in (run_dir / "checkpoints").iterdir():
        Checkpoint.from_bytes(path.read_bytes())
    return checkpoints(run_dir)


def poisoned(script, number, rank, what):
    """The script's update, whose `number`-th call in `rank` ends with a weight or a loss that is no number.

    And its `make_agent`, from which the update knows the weights.
    """
    make, update = SCRIPTS[script].make_agent, SCRIPTS[script].ppo_update
    agents, calls = [], []

    def make_agent(*args):
        agents.append(make(*args))
        return agents[-1]

    def ppo_update(*args):
        stats = update(*args)
        calls.append(None)
        if len(calls) == number and int(os.environ.get("RANK", "0")) == rank:
            if what == "policy_loss":
                return replace(stats, policy_loss=math.nan)
            with torch.no_grad():
                next(agents[-1].parameters()).view(-1)[17] = {"nan": math.nan, "inf": math.inf}[what]
        return stats

    return {"make_agent": make_agent, "ppo_update": ppo_update}


@pytest.mark.parametrize(
    ("script", "size", "rank", "what"),
    [
        ("torch", 1, 0, "nan"),
        ("torch", 1, 0, "policy_loss"),
        ("torch", 2, 1, "inf"),
        ("fabric", 2, 0, "policy_loss"),
        ("decoupled", 3, 1, "nan"),
    ],
)
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, script, size, rank, what):
    """The message names update and number; what is on disk is finite, of the update before, and goes on."""
    with monkeypatch.context() as patch:
        for name, function in poisoned(script, 4, rank, what).items():
            patch.setattr(SCRIPTS[script], name, function)
        said = train(script, size, tmp_path / "run")
    teller = 0 if script == "decoupled" else rank
    name = "policy_loss" if what == "policy_loss" else "weights"
    assert f"TrainingError: update 4: {name} not finite; lower --learning-rate, or" in said[teller]
    assert all(said)
    assert not (tmp_path / "run/policy.safetensors").exists()
    assert intact(tmp_path / "run")[0] == 3
    for path in newest_first(tmp_path / "run/checkpoints"):
        tensors = Checkpoint.from_bytes(path.read_bytes()).tensors
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    finish(script, size, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected"), resumes=1)


@pytest.mark.parametrize(("script", "size", "rank"), [("torch", 1, 0), ("fabric", 2, 1), ("decoupled", 3, 0)])
def test_an_estimator_that_returns_nan_stops_the_run(tmp_path, monkeypatch, script, size, rank):
    """In its fourth call, in one rank: it is named, before the others wait for its gradients."""
    usual, calls = advantages.gae, []

    def gae(*given):
        found = usual(*given)
        calls.append(None)
        if len(calls) == 4 and int(os.environ.get("RANK", "0")) == rank:
            found[0][0] = math.nan
        return found

    with monkeypatch.context() as patch:
        patch.setattr(advantages, "gae", gae)
        said = train(script, size, tmp_path / "run")
    assert "TrainingError: update 4: gae returned NaN among its advantages, though rewards and values" in said[rank]
    assert all(said)
    assert intact(tmp_path / "run")[0] == 3
    finish(script, size, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected"), resumes=1)


def test_an_evaluation_that_is_not_finite_leaves_a_run_that_goes_on(tmp_path):
    """A NaN in a checkpoint would have it refused, and with it the run."""
    seed = 3
    bad_seed = evaluation_seed(seed ^ 2**31, 1)
    flags = {"env_id": toy_env(length=4, fault="nan_reward", at=2, only_seed=bad_seed), "seed": seed, "eval_every": 3}
    (said,) = train("torch", 1, tmp_path / "run", **flags)
    fault = f"EnvironmentFault: {flags['env_id']} test episode 1, seed {bad_seed}, step 3: step returned reward nan"
    assert fault in said
    assert [line["update"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert intact(tmp_path / "run") == [3, 2]  # saved before it is evaluated
    (said,) = train("torch", 1, tmp_path / "run", resume=True, **flags)
    assert fault in said


@pytest.mark.parametrize(("script", "size"), [("torch", 2), ("decoupled", 2)])
def test_running_statistics_that_overflow_are_not_saved(tmp_path, monkeypatch, script, size):
    """They are renewed after the update, whose weights are finite.

    No observation does that by itself: the squares of float32 are far from the bounds of float64.
    """

    def overflow(moments, sums):
        moments.load_sums(torch.full_like(moments.all_sums(), math.inf))

    monkeypatch.setattr(RunningMoments, "update", overflow)
    said = train(script, size, tmp_path / "run", normalize_observations=True)
    assert (
        "TrainingError: update 1: running statistics not finite; mend what is replaced in agents/normalize.py"
        in said[0]
    )
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert metrics(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("script", "size", "rate"),
    [("torch", 1, 1e30), ("torch", 1, "constant:1e9"), ("fabric", 2, 1e30), ("decoupled", 2, 1e30)],
)
def test_a_learning_rate_that_is_far_too_large(tmp_path, script, size, rate):
    """Nothing is injected: weights overflow in the first update; with 1e9 the loss, which C computes in double."""
    said = train(script, size, tmp_path / "run", learning_rate=rate)
    assert "TrainingError: update 1: " in said[0]
    assert "not finite; lower --learning-rate, or" in said[0]
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert metrics(tmp_path / "run") == []
