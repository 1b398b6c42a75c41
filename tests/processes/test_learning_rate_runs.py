"""A learning rate that follows the KL divergence: all processes of a run keep to it."""

from __future__ import annotations

import json

import pytest

from fabric_ppo.process.files import Checkpoint
from tests.fixtures.resuming import finish, newest_checkpoint, train
from tests.fixtures.updates import FOLLOWS, rates_after


def logged(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["Info/learning_rate"], line["Info/approx_kl"]) for line in lines]


@pytest.mark.parametrize(
    ("script", "size", "flags"),
    [
        ("torch", 3, {}),
        ("fabric", 2, {"share_data": True}),
        ("decoupled", 3, {}),
        ("decoupled", 3, {"share_data": True, "overlap": True}),
    ],
)
def test_a_run_follows_the_divergence_that_it_logs(tmp_path, script, size, flags):
    run_dir = finish(script, size, tmp_path / "run", env_id="Pendulum-v1", **FOLLOWS | flags)
    lines = logged(run_dir)
    assert [rate for rate, _ in lines] == rates_after([kl for _, kl in lines])[:-1]
    assert len({rate for rate, _ in lines}) > 2
    assert newest_checkpoint(run_dir)[1].values["learning_rate"] == rates_after([kl for _, kl in lines])[-1]


@pytest.mark.parametrize("trainers", [1, 2])
def test_trainers_take_the_rate_that_the_coupled_ranks_take(tmp_path, trainers):
    """One trainer ends with the coupled script's bits, two to rounding."""
    flags = FOLLOWS | {"share_data": True}
    runs = [finish(script, 1, tmp_path / script, **flags) for script in ("torch", "fabric")]
    runs.append(finish("decoupled", 1 + trainers, tmp_path / "decoupled", per_rank_batch_size=11, **flags))
    policies = [(run_dir / "policy.safetensors").read_bytes() for run_dir in runs]
    assert policies[0] == policies[1]
    assert len({rate for rate, _ in logged(runs[0])}) > 2
    if trainers == 1:
        assert policies[2] == policies[0]


def test_a_rate_that_cannot_be_is_refused(tmp_path):
    run_dir = finish("torch", 1, tmp_path / "run", updates=2, **FOLLOWS)
    name, found = newest_checkpoint(run_dir)
    values = found.values | {"learning_rate": 5.0}
    (run_dir / "checkpoints" / name).write_bytes(Checkpoint(found.tensors, values).to_bytes())
    (error,) = train("torch", 1, run_dir, **FOLLOWS, resume=True)
    assert "does not fit this run (its learning_rate is 5.0)" in error


def test_a_longer_run_goes_on_with_the_rate(tmp_path):
    """And not with the one that it was started with."""
    expected = finish("torch", 1, tmp_path / "whole", **FOLLOWS)
    finish("torch", 1, tmp_path / "part", updates=3, **FOLLOWS)
    run_dir = finish("torch", 1, tmp_path / "part", **FOLLOWS, resume=True)
    assert logged(run_dir) == logged(expected)
