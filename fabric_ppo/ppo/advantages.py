"""Generalised advantage estimation (GAE, arXiv 1506.02438, equations 11 to 16)."""

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
    """Advantages and value targets of a rollout.

    `delta = r + gamma * next_value * (1 - terminated) - value`, summed with weights `(gamma * lambda)^l` up to the
    end of the episode, by termination or truncation, or of the rollout.

    Args:
        rewards, values: `[T, N]`.
        next_values: `[T, N]`, V of the true successor: of the final observation where the episode was truncated.
        terminated, truncated: `[T, N]` bool.
        gamma: discount.
        gae_lambda: 0 is the one-step error, 1 the whole discounted return.

    Returns:
        `(advantages, returns)`, each `[T, N]`, with `returns = advantages + values`.
    """
    deltas = rewards + gamma * next_values * (~terminated).to(values.dtype) - values
    decay = gamma * gae_lambda * (~(terminated | truncated)).to(values.dtype)
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    steps = zip(*(each.unbind() for each in (deltas, decay, advantages)), strict=True)
    for delta, kept, advantage in reversed(list(steps)):
        running = torch.addcmul(delta, kept, running, out=advantage)
    return advantages, advantages + values
