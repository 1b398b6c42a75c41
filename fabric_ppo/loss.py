"""The PPO objective (arXiv 1707.06347, equations 7 and 9) on one minibatch, pure tensors.

Every mean is a dot product with row weights that the caller hands in: a rank that holds part of a minibatch weighs
its rows so that the mean over ranks is the mean over the minibatch, and a row that is no transition weighs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """The loss of some rows, the only part with a gradient, and what is logged of it: scalars, detached."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


class MinibatchLoss(NamedTuple):
    """One minibatch's loss, the only part with a gradient, and what the agent made of its rows, detached, each `[b]`.

    From the latter follows what is logged, for all minibatches of an epoch at once.
    """

    loss: Tensor
    log_probs: Tensor
    entropy: Tensor
    values: Tensor


def ppo_loss(
    *,
    log_probs: Tensor,
    entropy: Tensor,
    values: Tensor,
    old_log_probs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    weights: Tensor,
    clip_coef: float,
    vf_coef: float,
    ent_coef: float,
    clip_vloss: bool,
) -> Losses:
    """Clipped surrogate + vf_coef * value loss - ent_coef * entropy.

    The value loss carries the factor 1/2 of the paper's code. `approx_kl` is the estimator `(r - 1) - log r`
    (http://joschu.net/blog/kl-approx.html), `clip_fraction` the share of rows whose ratio leaves `1 +- clip_coef`.

    Args:
        log_probs, entropy, values: of the agent as it is, `[b]`, with gradients.
        old_log_probs, old_values: at collection time, `[b]`.
        advantages, returns: `[b]`.
        weights: `[b]`; `1 / b` each gives the plain mean.
        clip_coef, vf_coef, ent_coef, clip_vloss: hyperparameters.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    policy_loss = -torch.dot(weights, torch.minimum(advantages * ratio, advantages * clipped_ratio))
    squared_error = (values - returns).square()
    if clip_vloss:
        bounded = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
        squared_error = torch.maximum(squared_error, (bounded - returns).square())
    value_loss = 0.5 * torch.dot(weights, squared_error)
    mean_entropy = torch.dot(weights, entropy)
    loss = policy_loss + vf_coef * value_loss - ent_coef * mean_entropy
    with torch.no_grad():
        approx_kl = torch.dot(weights, ratio - 1 - log_ratio)
        clip_fraction = torch.dot(weights, ((ratio - 1).abs() > clip_coef).to(weights.dtype))
    return Losses(loss, policy_loss.detach(), value_loss.detach(), mean_entropy.detach(), approx_kl, clip_fraction)
