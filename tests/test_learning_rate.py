"""A learning rate that follows the KL divergence: its rule, and that all processes of a run keep to it."""

import json

import pytest
import torch
from torch import nn

from fabric_ppo import Config, ConfigError
from fabric_ppo.fast.loss_module import make_optimizer
from fabric_ppo.ppo.schedules import adapt_learning_rate, begin_update
from fabric_ppo.process.files import Checkpoint
from tests.resuming import finish, newest_checkpoint, train

FOLLOWS = {"desired_kl": 2e-3, "anneal_lr": False}


def rates_after(kls, **flags):
    config = Config(**FOLLOWS | flags)
    module = nn.Linear(2, 2)
    optimizer, used = make_optimizer(module, config), []
    for update, kl in enumerate([*kls, None]):
        used.append(begin_update(module, optimizer, config, update, 100).learning_rate)
        assert optimizer.param_groups[0]["lr"] == used[-1]
        if kl is not None:
            adapt_learning_rate(optimizer, config, kl)
    return used


def test_the_rate_follows_the_divergence():
    """Beyond twice 0.002 it falls, short of half of it it rises; the bounds themselves leave it alone."""
    kls = [0.0041, 0.004, 0.001, 0.0009, 0.0, torch.tensor(1.0, dtype=torch.float64)]
    third = 1e-3 / 1.5
    assert rates_after(kls) == pytest.approx([1e-3, third, third, third, 1e-3, 1.5e-3, 1e-3], rel=1e-12)


def test_the_rate_stays_within_bounds():
    assert min(rates_after([1.0] * 40)) == 1e-5
    assert max(rates_after([0.0] * 40)) == 1e-2


def test_without_the_flag_it_is_left_alone():
    config = Config(anneal_lr=False)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    adapt_learning_rate(optimizer, config, 100.0)
    assert optimizer.param_groups[0]["lr"] == config.learning_rate


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"desired_kl": 0.01}, r"^--desired-kl 0\.01: --no-anneal-lr is needed too, .*$"),
        ({"desired_kl": 0.0, "anneal_lr": False}, r"^--desired-kl 0\.0: a number above 0, or None is expected$"),
        (
            FOLLOWS | {"learning_rate": 0.1},
            r"^--learning-rate 0\.1: with --desired-kl a number from 1e-05 to 0\.01 .*$",
        ),
    ],
)
def test_what_cannot_work_is_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        Config(**flags)


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
    (said,) = train("torch", 1, run_dir, **FOLLOWS, resume=True)
    assert "does not fit this run (its learning_rate is 5.0)" in said


def test_a_longer_run_goes_on_with_the_rate(tmp_path):
    """And not with the one that it was started with."""
    expected = finish("torch", 1, tmp_path / "whole", **FOLLOWS)
    finish("torch", 1, tmp_path / "part", updates=3, **FOLLOWS)
    run_dir = finish("torch", 1, tmp_path / "part", **FOLLOWS, resume=True)
    assert logged(run_dir) == logged(expected)
