"""A copy of an agent in float64, to compare a fast form with the plain one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fabric_ppo.agents.agent import Agent

TOLERANCE = 1e-9
"""Largest difference, relative to the norm, that rounding makes of float64 numbers.

In float32 an edit that changes little, such as a small penalty, could pass for rounding.
"""
_REACH = 0.1


def float64_twin(agent: Agent) -> Agent:
    """Return a copy of an agent in float64, with memory of its own."""
    return copy.deepcopy(agent).to(torch.float64)


@torch.no_grad()
def move_weights(module: nn.Module) -> None:
    """Move all weights by up to 0.1, the same way each time.

    Two forms may agree at a run's start only: the means of a fresh policy are close to zero, where
    they equal their tanh.
    """
    for each in module.parameters():
        each.add_(torch.arange(each.numel()).cos().mul_(_REACH).to(each).view_as(each))


def is_close(plain: Tensor, fast: Tensor) -> bool:
    """Return True if the difference of two tensors is small beside the norm of `plain`."""
    if plain.shape != fast.shape:
        return False
    error, norm = torch.linalg.vector_norm(plain - fast), torch.linalg.vector_norm(plain)
    if not norm.isfinite():
        # where both overflow, as with large observations, this shows nothing about the fast form,
        # and `run.guard` reports it; but what is NaN as it is written must not train
        return not bool(fast.isfinite().all())
    return bool(error <= TOLERANCE * norm.clamp(min=1.0))
