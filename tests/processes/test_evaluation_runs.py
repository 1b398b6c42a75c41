"""Evaluations while a run trains: they change nothing, are logged, and choose the best checkpoint."""

from __future__ import annotations

import json

import pytest

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.rollouts.evaluate import evaluate
from tests.fixtures.configs import tiny
from tests.fixtures.launching import run_ranks

SEED = 5


FLAGS = tiny(update_epochs=4, learning_rate=0.01, seed=SEED)


EVALUATIONS = {"eval_every": 3, "eval_episodes": 4}


def trained(script, world_size, run_dir, updates=12, **flags):
    envs = world_size if script != "decoupled" else 1
    values = FLAGS | {"total_timesteps": 64 * envs * updates} | flags
    config = SCRIPT_CONFIGS[script](**values, run_dir=str(run_dir))
    assert run_ranks(script, [config] * world_size) == [""] * world_size
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return (run_dir / "policy.safetensors").read_bytes(), {
        line["update"]: line["Eval/return_mean"] for line in lines if "Eval/return_mean" in line
    }


@pytest.mark.parametrize(("script", "world_size"), [("torch", 1), ("fabric", 2), ("decoupled", 2)])
def test_evaluations_choose_the_best_checkpoint_and_change_nothing(tmp_path, script, world_size):
    plain, nothing = trained(script, world_size, tmp_path / "plain")
    policy, returns = trained(script, world_size, tmp_path / "run", **EVALUATIONS)
    assert policy == plain
    assert nothing == {}
    assert list(returns) == [3, 6, 9, 12]
    best = Checkpoint.from_bytes((tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes()).values
    at = max(returns, key=lambda update: (returns[update], -update))
    assert (best["update"], best["return_mean"]) == (at, returns[at])
    # what was logged is what the policy plays, with seeds that are not the test's
    last = load_agent(tmp_path / "run")
    played = evaluate(last, 4, SEED ^ 2**31)
    assert returns[12] == played.to_dict()["return_mean"]
    assert played.returns != evaluate(last, 4, SEED).returns


def test_a_resumed_run_goes_on_with_its_best(tmp_path):
    flags = EVALUATIONS | {"anneal_lr": False}
    _, whole = trained("torch", 1, tmp_path / "whole", **flags)
    trained("torch", 1, tmp_path / "parts", updates=7, **flags)
    _, parts = trained("torch", 1, tmp_path / "parts", resume=True, **flags)
    assert parts == whole
    best = [
        Checkpoint.from_bytes((tmp_path / name / "checkpoints" / "best.ckpt").read_bytes()).values["update"]
        for name in ("whole", "parts")
    ]
    assert best[0] == best[1]
