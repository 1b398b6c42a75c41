"""Generalised advantage estimation (GAE), arXiv 1506.02438, section 3."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Compute advantages and value targets of a rollout (arXiv 1506.02438, equation 16).

    An advantage is the sum of the one-step errors from its step on, weighted by
    `(gamma * lambda)^l`, up to the end of the episode or of the rollout:

        delta[t] = r[t] + gamma * V(s[t + 1]) * (1 - terminated[t]) - V(s[t])
        A[t] = delta[t] + gamma * lambda * (1 - (terminated | truncated)[t]) * A[t + 1]

    Args:
        rewards, values: `[T, N]`.
        next_values: `[T, N]`, V of the true successor, which is the final observation where the
            episode was truncated.
        terminated, truncated: `[T, N]` bool.
        gamma: discount, from 0 to 1.
        gae_lambda: from 0 to 1. With 0 the advantage is the one-step error (equation 17), with 1
            the discounted return minus the value (equation 18).

    Returns:
        `(advantages, returns)`, each `[T, N]`, with `returns = advantages + values`.
    """
    # no reward follows a terminated state: its successor's value is 0. A truncated episode would
    # have gone on, so the value of its final observation stands for the rest of it
    deltas = rewards + gamma * next_values * (~terminated).to(values.dtype) - values
    # both ends cut the sum: the next row belongs to another episode
    decay = gamma * gae_lambda * (~(terminated | truncated)).to(values.dtype)
    advantages = torch.empty_like(deltas)
    # backwards, for A[t] contains A[t + 1]; beyond the last step of the rollout the sum is 0
    running = torch.zeros_like(deltas[0])
    steps = zip(*(each.unbind() for each in (deltas, decay, advantages)), strict=True)
    for delta, kept, advantage in reversed(list(steps)):
        running = torch.addcmul(delta, kept, running, out=advantage)
    # TD(lambda) targets: the value's own estimate plus its lambda-weighted errors
    return advantages, advantages + values
