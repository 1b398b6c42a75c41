"""The PPO objective (arXiv 1707.06347, equations 7 and 9) on one minibatch.

Every mean is a dot product with row weights that the caller hands in: a rank that holds part of a
minibatch weighs its rows so that the mean over ranks is the mean over the minibatch, and a row that
is no transition weighs nothing.

This is the loss that trains. `fast/fused_loss.py` stands for it where it computes the same, which
is checked when a run begins: edit this file, and your edit is trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fabric_ppo.agents.agent import Evaluation
from fabric_ppo.ppo.batch import Rows


class Coefficients(NamedTuple):
    """The loss's hyperparameters in one update."""

    clip_coef: float
    vf_coef: float
    ent_coef: float
    clip_vloss: bool


class Losses(NamedTuple):
    """The loss of some rows, the only part with a gradient, and its parts: scalars, detached."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


class MinibatchLoss(NamedTuple):
    """One minibatch's loss, the only part with a gradient, and the agent's view of its rows, `[b]`.

    From the latter follow the logged parts of the loss, for all minibatches of an epoch at once.
    """

    loss: Tensor
    log_probs: Tensor
    entropy: Tensor
    values: Tensor


LossFn = Callable[[Rows, Coefficients], MinibatchLoss]
"""The loss of a minibatch, through the wrapped module where gradients are to be synchronised."""


def ppo_loss(rows: Rows, new: Evaluation, coefs: Coefficients) -> Losses:
    """Compute clipped surrogate + vf_coef * value loss - ent_coef * entropy.

    The value loss carries the factor 1/2 of the paper's code.

    Args:
        rows: as collected, `[b]`; weights of `1 / b` each give the plain mean.
        new: the agent's view of these rows as it is, with gradients.
        coefs: hyperparameters.
    """
    # the surrogate, equation 7: no gain from moving the ratio further than the clip
    log_ratio = new.log_probs - rows.log_probs
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - coefs.clip_coef, 1 + coefs.clip_coef)
    surrogate = torch.minimum(rows.advantages * ratio, rows.advantages * clipped_ratio)
    policy_loss = -torch.dot(rows.weights, surrogate)

    squared_error = (new.values - rows.returns).square()
    if coefs.clip_vloss:
        moved = (new.values - rows.values).clamp(-coefs.clip_coef, coefs.clip_coef)
        bounded_error = rows.values + moved - rows.returns
        squared_error = torch.maximum(squared_error, bounded_error.square())
    value_loss = 0.5 * torch.dot(rows.weights, squared_error)

    entropy_loss = -torch.dot(rows.weights, new.entropy)
    loss = policy_loss + coefs.vf_coef * value_loss + coefs.ent_coef * entropy_loss  # equation 9

    with torch.no_grad():
        # the estimator (r - 1) - log r of the KL divergence, http://joschu.net/blog/kl-approx.html
        approx_kl = torch.dot(rows.weights, ratio - 1 - log_ratio)
        is_clipped = ((ratio - 1).abs() > coefs.clip_coef).to(rows.weights.dtype)
        clip_fraction = torch.dot(rows.weights, is_clipped)
    detached = (policy_loss.detach(), value_loss.detach(), entropy_loss.detach())
    return Losses(loss, *detached, approx_kl, clip_fraction)


def minibatch_loss(agent: Callable[..., Evaluation], rows: Rows, coefs: Coefficients) -> MinibatchLoss:
    """Compute the PPO loss of a minibatch for any agent, by autograd."""
    new = agent(rows.obs, rows.actions, rows.sequences)
    loss = ppo_loss(rows, new, coefs).loss
    return MinibatchLoss(loss, *(column.detach() for column in new))
