"""Hyperparameters that change from update to update."""

from __future__ import annotations

import torch

from fabric_ppo.config import LEARNING_RATES, Config
from fabric_ppo.ppo.loss import Coefficients

_RATE_STEP = 1.5


def set_learning_rate(optimizer: torch.optim.Optimizer, config: Config, update: int, num_updates: int) -> float:
    """Set the optimizer's learning rate for an update, and return it.

    With `anneal_lr` it falls linearly to zero at the end of the run. With `desired_kl` it is the
    optimizer's own, as `adapt_learning_rate` left it.
    """
    if config.desired_kl is None:
        rate = _annealed(config.learning_rate, config.anneal_lr, update, num_updates)
        for group in optimizer.param_groups:
            group["lr"] = rate
    current: float = optimizer.param_groups[0]["lr"]
    return current


def coefficients(config: Config, update: int, num_updates: int) -> Coefficients:
    """Return the loss's hyperparameters in an update; some may fall linearly to zero."""
    return Coefficients(
        clip_coef=_annealed(config.clip_coef, config.anneal_clip_coef, update, num_updates),
        vf_coef=config.vf_coef,
        ent_coef=_annealed(config.ent_coef, config.anneal_ent_coef, update, num_updates),
        clip_vloss=config.clip_vloss,
    )


def _annealed(value: float, anneals: bool, update: int, num_updates: int) -> float:
    return value * (1 - update / num_updates) if anneals else value


def adapt_learning_rate(optimizer: torch.optim.Optimizer, config: Config, approx_kl: float) -> None:
    """With `desired_kl`, set the next update's learning rate by how far the policy moved in this one.

    The rule of rsl_rl (arXiv 2109.11978), with the KL divergence of a whole update instead of a
    minibatch's.

    Args:
        optimizer: holds the rate.
        config: hyperparameters.
        approx_kl: mean over the update's minibatches and over all ranks, so that all decide alike.
    """
    if config.desired_kl is None:
        return
    least, most = LEARNING_RATES
    for group in optimizer.param_groups:
        if approx_kl > 2 * config.desired_kl:
            group["lr"] = max(least, group["lr"] / _RATE_STEP)
        elif approx_kl < config.desired_kl / 2:
            group["lr"] = min(most, group["lr"] * _RATE_STEP)
