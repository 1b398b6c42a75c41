"""Learning rate, clip and entropy coefficients from update to update."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.schedules import adapt_learning_rate, coefficients, set_learning_rate
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.updates import CONFIG, coefs_of, rates_after


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


def test_learning_rate_falls_linearly_to_zero():
    config = dataclasses.replace(CONFIG, anneal_lr=True)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    for update, expected in enumerate([0.01, 0.008, 0.006, 0.004, 0.002]):
        assert set_learning_rate(optimizer, config, update, 5) == pytest.approx(expected, rel=1e-12)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize("flags", [{"anneal_lr": True}, {"anneal_lr": False, "desired_kl": 2e-3}])
def test_the_first_group_of_any_optimizer_has_the_flags_learning_rate(flags):
    """Whatever rate the optimizer was made with, also one in a tensor; the second keeps its ratio to the first."""
    config = dataclasses.replace(CONFIG, learning_rate=0.003, **flags)
    parameters = nn.Linear(2, 2).parameters()
    groups = [{"params": each, "lr": rate} for each, rate in zip(parameters, (0.5, 1e-9), strict=True)]
    many = [{"params": each} for each in nn.Linear(2, 2).parameters()]
    for optimizer in (torch.optim.SGD(many, 0.25), torch.optim.Adam(many, lr=torch.tensor(0.7), capturable=True)):
        assert set_learning_rate(optimizer, config, 0, 4) == 0.003
        assert [group["lr"] for group in optimizer.param_groups] == [0.003, 0.003]
    for optimizer in (torch.optim.SGD(groups), torch.optim.Adam(groups, lr=torch.tensor(0.7), capturable=True)):
        assert set_learning_rate(optimizer, config, 0, 4) == 0.003
        adapt_learning_rate(optimizer, config, 1.0)
        expected = 0.003 / 1.5 if config.desired_kl else 0.0015
        assert set_learning_rate(optimizer, config, 2, 4) == pytest.approx(expected, rel=1e-12)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [expected, expected * 2e-9], rel=1e-12
        )


def test_a_first_group_without_a_rate_is_refused():
    groups = [
        {"params": each, "lr": rate} for each, rate in zip(nn.Linear(2, 2).parameters(), (0.0, 1e-3), strict=True)
    ]
    with pytest.raises(ConfigError, match="first parameter group is 0"):
        set_learning_rate(torch.optim.SGD(groups), CONFIG, 0, 4)


def rates(learning_rate, num_updates):
    """The learning rates of a run."""
    config = Config(learning_rate=learning_rate)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    return [set_learning_rate(optimizer, config, update, num_updates) for update in range(num_updates)]


def test_a_schedule_without_an_end_is_what_annealing_is():
    assert rates("linear:0.003", 7) == rates(0.003, 7)  # to the last bit


def test_a_line_between_two_values():
    """The end is that of the run, which the update after the last one would have."""
    assert rates("linear:1:0.5", 5) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6], rel=1e-12)
    assert rates("linear:1:2", 4) == pytest.approx([1, 1.25, 1.5, 1.75], rel=1e-12)


def test_a_cosine_is_pytorchs():
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9, eta_min=0.1)
    expected = []
    for _ in range(9):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates("cosine:0.4:0.1", 9) == pytest.approx(expected, rel=1e-12)


def test_a_warm_up_rises_to_where_the_schedule_begins():
    """A quarter of eight updates: thirds, then six updates of the schedule."""
    assert rates("constant:3:warmup=0.25", 8) == pytest.approx([1, 2, 3, 3, 3, 3, 3, 3], rel=1e-12)
    assert rates("linear:3:warmup=0.25", 8) == pytest.approx([1, 2, 3, 2.5, 2, 1.5, 1, 0.5], rel=1e-12)
    assert rates("linear:1:warmup=0.99", 1) == [1]  # one update is the whole run


def test_coefficients_follow_schedules_of_their_own():
    config = Config(clip_coef="cosine:0.3:0.1", ent_coef="linear:0:0.4")
    half_way = coefficients(config, 3, 6)
    assert half_way == pytest.approx((0.2, config.vf_coef, 0.2, False), rel=1e-12)


def test_learning_rate_stays_without_annealing():
    config = dataclasses.replace(CONFIG, anneal_lr=False)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    optimizer.param_groups[0]["lr"] = 7.0  # as after a resume
    assert set_learning_rate(optimizer, config, 4, 5) == 0.01
    assert coefficients(config, 4, 5) == (0.1, 0.7, 0.02, config.clip_vloss)
    assert optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("action", [spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])
def test_clip_and_entropy_coefficients_fall_linearly_to_zero(action):
    """The loss in update 3 of 5 is that of a run whose coefficients are two fifths."""
    spec = env_spec("Test-v0", spaces.Box(-1, 1, (3,)), action)
    flags = {"clip_coef": 0.3, "ent_coef": 0.5, "clip_vloss": True}
    config = Config(**flags, anneal_clip_coef=True, anneal_ent_coef=True)
    losses = PPOLoss(make_agent(spec, config), config)
    torch.manual_seed(0)
    actions = torch.from_numpy(np.stack([action.sample() for _ in range(16)]))
    rows = Rows(torch.randn(16, 3), actions, *torch.randn(4, 16), torch.ones(16) / 16)
    first = coefficients(config, 0, 5)
    assert first == (0.3, config.vf_coef, 0.5, True)
    at_first = losses(rows, first).loss
    current = coefficients(config, 3, 5)
    assert current == pytest.approx((0.12, config.vf_coef, 0.2, True), rel=1e-12)
    constant = Config(clip_coef=current.clip_coef, ent_coef=current.ent_coef, clip_vloss=True)
    expected = PPOLoss(make_agent(spec, constant), constant)(rows, coefs_of(constant)).loss
    assert torch.equal(losses(rows, current).loss, expected)
    assert not torch.equal(at_first, expected)
