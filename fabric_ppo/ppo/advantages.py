"""Generalised advantage estimation (GAE), arXiv 1506.02438, section 3."""

from __future__ import annotations

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
    # beyond the last step of the rollout the sum is 0. It is taken by doubling (Hillis and Steele,
    # 1986): from sums of `span` errors, with A[t + span] times the decays on the way, to sums of
    # twice as many. The recursion from the last row to the first would be T small operations
    advantages, span = deltas, 1
    while span < len(deltas):
        advantages[:-span].addcmul_(decay[: len(deltas) - span], advantages[span:].clone())
        decay = decay[:-span] * decay[span:]
        span *= 2
    # TD(lambda) targets: the value's own estimate plus its lambda-weighted errors
    return advantages, advantages + values
