"""Hyperparameters that change from update to update."""

from __future__ import annotations

import math

import torch

from fabric_ppo.config import Config
from fabric_ppo.config_schedule import flag_schedule
from fabric_ppo.config_values import LEARNING_RATES
from fabric_ppo.ppo.loss import Coefficients
from fabric_ppo.process.errors import ConfigError

_RATE_STEP = 1.5
"""Factor by which `--desired-kl` changes the learning rate after an update."""


def set_learning_rate(optimizer: torch.optim.Optimizer, config: Config, update: int, num_updates: int) -> float:
    """Set the optimizer's learning rate for an update, and return it.

    It is the rate of the first parameter group (see `put_learning_rate`), and follows `scheduled`.
    With `desired_kl`, `adapt_learning_rate` sets it after the first update.

    Args:
        optimizer: gets the rate.
        config: hyperparameters.
        update: updates before this one, so that the first has the full rate.
        num_updates: updates of the whole run.
    """
    if config.desired_kl is None or update == 0:
        put_learning_rate(optimizer, scheduled(config, "learning_rate", update, num_updates))
    return float(optimizer.param_groups[0]["lr"])


def put_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the first parameter group; other groups keep their ratio to it.

    Raises:
        ConfigError: the optimizer was made with a rate of zero for the first group.
    """
    groups = optimizer.param_groups
    for group in groups:
        group.setdefault("initial_lr", float(group["lr"]))
    first = groups[0]["initial_lr"]
    if first == 0 and len(groups) > 1:
        raise ConfigError("the learning rate of the optimizer's first parameter group is 0: more is expected")
    for group in groups:
        own = group["initial_lr"]
        group["lr"] = rate if own == first else rate * (own / first)


def coefficients(config: Config, update: int, num_updates: int) -> Coefficients:
    """Return the loss's hyperparameters in an update; see `scheduled`.

    The arguments are those of `set_learning_rate`.
    """
    return Coefficients(
        clip_coef=scheduled(config, "clip_coef", update, num_updates),
        vf_coef=config.vf_coef,
        ent_coef=scheduled(config, "ent_coef", update, num_updates),
        clip_vloss=config.clip_vloss,
    )


def scheduled(config: Config, name: str, update: int, num_updates: int) -> float:
    """Return the value of a flag with a schedule in an update.

    A number falls linearly to zero over the run if its `anneal` flag is on (alpha of arXiv 1707.06347,
    table 5), else it is constant. A cosine is that of arXiv 1608.03983, equation 5. A warm-up rises
    linearly (arXiv 1706.02677, section 2.2), and the schedule spans the updates after it.

    Args:
        config: hyperparameters.
        name: the flag's field: `learning_rate`, `clip_coef` or `ent_coef`.
        update: updates before this one.
        num_updates: updates of the whole run.
    """
    schedule = flag_schedule(config, name)
    num_warmup = min(round(schedule.warmup * num_updates), num_updates - 1)
    if update < num_warmup:
        # not from 0, with which an update would learn nothing
        return schedule.start * (update + 1) / (num_warmup + 1)
    progress = (update - num_warmup) / (num_updates - num_warmup)
    if schedule.shape == "constant":
        return schedule.start
    remaining = 1 - progress if schedule.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.end + (schedule.start - schedule.end) * remaining


def adapt_learning_rate(optimizer: torch.optim.Optimizer, config: Config, approx_kl: float) -> None:
    """Lower or raise the learning rate for the next update if `desired_kl` is set.

    The rule is that of rsl_rl (arXiv 2109.11978), with the KL divergence of a whole update instead
    of a minibatch's.

    Args:
        optimizer: holds the rate.
        config: hyperparameters.
        approx_kl: mean over the update's minibatches and over all ranks, so that all ranks set the
            same rate.
    """
    if config.desired_kl is None:
        return
    least, most = LEARNING_RATES
    rate = optimizer.param_groups[0]["lr"]
    # between half and twice the desired divergence the rate stays, or it would swing with the
    # noise of the estimate
    if approx_kl > 2 * config.desired_kl:
        put_learning_rate(optimizer, max(least, rate / _RATE_STEP))
    elif approx_kl < config.desired_kl / 2:
        put_learning_rate(optimizer, min(most, rate * _RATE_STEP))
