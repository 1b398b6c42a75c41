"""Hyperparameters that change from update to update."""

from __future__ import annotations

import torch

from fabric_ppo.config import Config
from fabric_ppo.config_values import LEARNING_RATES
from fabric_ppo.ppo.loss import Coefficients
from fabric_ppo.process.errors import ConfigError

_RATE_STEP = 1.5
"""Factor by which `--desired-kl` changes the learning rate after an update."""


def set_learning_rate(optimizer: torch.optim.Optimizer, config: Config, update: int, num_updates: int) -> float:
    """Set the optimizer's learning rate for an update, and return it.

    It is that of the first parameter group (see `put_learning_rate`). With `anneal_lr` it falls
    linearly to zero at the end of the run. With `desired_kl` it is, after the first update, what
    `adapt_learning_rate` has set.

    Args:
        optimizer: gets the rate.
        config: hyperparameters.
        update: updates before this one, so that the first has the full rate.
        num_updates: updates of the whole run.
    """
    if config.desired_kl is None or update == 0:
        rate = _annealed(config.learning_rate, config.anneal_lr, update, num_updates)
        put_learning_rate(optimizer, rate)
    return float(optimizer.param_groups[0]["lr"])


def put_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the first parameter group; the rates of others keep their ratio to it.

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
    """Return the loss's hyperparameters in an update; those to be annealed fall linearly to zero.

    The arguments are those of `set_learning_rate`.
    """
    return Coefficients(
        clip_coef=_annealed(config.clip_coef, config.anneal_clip_coef, update, num_updates),
        vf_coef=config.vf_coef,
        ent_coef=_annealed(config.ent_coef, config.anneal_ent_coef, update, num_updates),
        clip_vloss=config.clip_vloss,
    )


def _annealed(value: float, anneals: bool, update: int, num_updates: int) -> float:
    """Return `value`, where it `anneals` times alpha of arXiv 1707.06347, table 5: from 1 to 0."""
    return value * (1 - update / num_updates) if anneals else value


def adapt_learning_rate(optimizer: torch.optim.Optimizer, config: Config, approx_kl: float) -> None:
    """Lower or raise the learning rate for the next update with `desired_kl`; else do nothing.

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
