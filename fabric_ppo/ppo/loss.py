"""The PPO objective (arXiv 1707.06347, equations 7 and 9) on one minibatch.

Every mean is a dot product with the rows' weights. If each rank holds a part of a minibatch, the
weights are such that the mean over ranks is the mean over the minibatch. A row that is no transition
has weight 0.

This is the loss that trains. `fast/compiled_loss.py` replaces it only if both compute the same, which
is checked when a run begins. So an edit of this file takes effect, at the price of autograd;
`--compile` recovers a part of that. Logged parts need not be dot products with the weights: their
mean over minibatches is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent, Evaluation
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.returned import checked_losses


class Coefficients(NamedTuple):
    """Hyperparameters of the loss in one update; see the flags with the same names."""

    clip_coef: float
    vf_coef: float
    ent_coef: float
    clip_vloss: bool


class Losses(NamedTuple):
    """Loss of a minibatch, which has a gradient, and its parts without gradients; scalars."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


class MinibatchLoss(NamedTuple):
    """Loss of a minibatch, a scalar with a gradient.

    `parts` are its logged parts in the order of `Losses`, `[5]`, without gradient.
    """

    loss: Tensor
    parts: Tensor


LossFn = Callable[[Rows, Coefficients], MinibatchLoss]
"""Loss of a minibatch; it calls the module that DDP wraps, or gradients would not be averaged."""


def ppo_loss(rows: Rows, new: Evaluation, coefs: Coefficients) -> Losses:
    """Compute the PPO loss: policy loss + vf_coef * value loss - ent_coef * entropy (equation 9).

    The value loss has the factor 1/2 of the paper's code.

    Args:
        rows: transitions as collected, `[b]`; weights of `1 / b` each give the plain mean.
        new: log-probabilities, entropies and values of these rows with the present weights.
        coefs: hyperparameters.

    Returns:
        The loss and its parts; only the loss has a gradient.
    """
    # equation 7, L^CLIP = E[min(r A, clip(r, 1 - eps, 1 + eps) A)] with the probability ratio r:
    # the minimum leaves nothing to be gained by moving r beyond the clipping range
    log_ratio = new.log_probs - rows.log_probs
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - coefs.clip_coef, 1 + coefs.clip_coef)
    surrogate = torch.minimum(rows.advantages * ratio, rows.advantages * clipped_ratio)
    policy_loss = -torch.dot(rows.weights, surrogate)

    squared_error = (new.values - rows.returns).square()
    # the same idea for values, from the paper's code: a step beyond the clipping range around the
    # value at collection time does not lower the loss
    if coefs.clip_vloss:
        moved = (new.values - rows.values).clamp(-coefs.clip_coef, coefs.clip_coef)
        bounded_error = rows.values + moved - rows.returns
        squared_error = torch.maximum(squared_error, bounded_error.square())
    value_loss = 0.5 * torch.dot(rows.weights, squared_error)

    # equation 9, L = L^CLIP - c1 L^VF + c2 S; negated, for optimizers minimise
    entropy_loss = -torch.dot(rows.weights, new.entropy)
    loss = policy_loss + coefs.vf_coef * value_loss + coefs.ent_coef * entropy_loss

    with torch.no_grad():
        # (r - 1) - log r estimates the KL divergence without bias and is never negative, unlike
        # -log r (http://joschu.net/blog/kl-approx.html, k3)
        approx_kl = torch.dot(rows.weights, ratio - 1 - log_ratio)
        is_clipped = ((ratio - 1).abs() > coefs.clip_coef).to(rows.weights.dtype)
        clip_fraction = torch.dot(rows.weights, is_clipped)
    detached = (policy_loss.detach(), value_loss.detach(), entropy_loss.detach())
    return Losses(loss, *detached, approx_kl, clip_fraction)


def minibatch_loss(agent: Agent, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
    """Compute the PPO loss of a minibatch for any agent, with autograd.

    Args:
        agent: called as `Agent.forward`; its other attributes train too, such as `agent.value`.
        rows: the minibatch, `[b]`.
        coefs: hyperparameters.
    """
    new = agent(rows.obs, rows.actions, rows.sequences)
    loss, *parts = checked_losses(ppo_loss(rows, new, coefs), Losses._fields)
    return MinibatchLoss(loss, torch.stack(parts).detach())
