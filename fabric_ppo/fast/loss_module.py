"""The PPO loss as a module over one flat vector of weights; stands for `ppo.loss.minibatch_loss`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import Config
from fabric_ppo.fast.clipped_adam import ClippedAdam
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.fast.fused_loss import FusedLoss, can_fuse
from fabric_ppo.ppo.batch import Rows, blank_rows
from fabric_ppo.ppo.loss import Coefficients, MinibatchLoss, minibatch_loss
from fabric_ppo.ppo.schedules import coefficients
from fabric_ppo.process.console import print_from_rank_zero

_TOLERANCE = 1e-3
"""Difference from the plain loss's gradient, relative to its norm, that is no rounding any more."""


class PPOLoss(nn.Module):
    """The PPO loss of an agent: (minibatch, coefficients) -> MinibatchLoss.

    It is computed in closed form where all parts of the agent declare that they have one, by
    autograd elsewhere. On a run's first minibatch the closed form is held against autograd's loss
    and gradient. Where they differ beyond rounding, autograd's is used, and a line says so.

    Attributes:
        weights: all of the agent's, in one parameter.
    """

    def __init__(self, agent: Agent, config: Config) -> None:
        """Take over the weights of `agent`, which goes on acting with them."""
        super().__init__()
        self.weights = FlatWeights(agent)
        self._agent = (agent,)  # in a tuple, so that its weights are not registered twice
        self._config = config
        self._fused: FusedLoss | None = None
        self._is_equal: bool | None = None
        self._compiled: Callable[..., Any] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PPOLoss:
        """Move or convert; `.to(...)` gives the weights new memory."""
        super()._apply(fn, recurse)
        self._fused = None
        return self

    def forward(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
        """Compute the loss of a minibatch."""
        (agent,) = self._agent
        if self._compiled is not None:
            return MinibatchLoss(*self._compiled(*rows))
        if self._is_equal is False or not can_fuse(agent, rows.weights.device.type):
            return minibatch_loss(self.weights, rows, coefs)
        if self._fused is None:
            self._fused = FusedLoss(agent, self.weights)
        if self._is_equal is None and rows.weights.device.type != "meta":
            self._is_equal = self._compare(self._fused, rows, coefs)
            if not self._is_equal:
                print_from_rank_zero(
                    "ppo/loss.py and agents/ compute another loss than fast/fused_loss.py: the former, slower, trains"
                )
                return minibatch_loss(self.weights, rows, coefs)
        return self._fused(rows, coefs)

    def _compare(self, fused: FusedLoss, rows: Rows, coefs: Coefficients) -> bool:
        """Return whether closed form and autograd agree on rows like these, but for rounding.

        Nothing was clipped yet, for the agent is still the one that collected: as if it were not,
        log-probabilities, values and weights are moved to both sides of each bound.
        """
        sides = torch.linspace(-3, 3, len(rows.weights)).to(rows.weights).mul_(coefs.clip_coef)
        moved = rows._replace(
            log_probs=rows.log_probs + sides,
            values=rows.values + sides.flip(0),
            returns=rows.returns + sides.roll(1),
        )
        flat = self.weights.flat
        for each in (rows, moved):
            # with an entropy bonus also where there is none yet
            some = coefs._replace(ent_coef=coefs.ent_coef or 0.01)
            plain, fast = minibatch_loss(self.weights, each, some), fused(each, some)
            (expected,) = torch.autograd.grad(plain.loss, flat)
            (grad,) = torch.autograd.grad(fast.loss, flat)
            pairs = [(expected, grad), *zip(plain, fast, strict=True)]
            if not all(_is_close(a.detach(), b.detach()) for a, b in pairs):
                return False
        return True

    def compile_loss(self) -> None:
        """Have `torch.compile` translate autograd's loss, for minibatches of any size, now."""
        (agent,) = self._agent
        coefs = coefficients(self._config, 0, 1)  # they stay: --compile refuses those that anneal

        def columns(*rows: Tensor) -> tuple[Tensor, ...]:
            return tuple(minibatch_loss(self.weights, Rows(*rows), coefs))

        self._compiled = torch.compile(columns, dynamic=True)
        blank = blank_rows(agent, self._config.per_rank_batch_size)
        # the backward pass is compiled when it is first needed
        torch.autograd.grad(self(blank, coefs).loss, self.weights.flat)


def _is_close(plain: Tensor, fast: Tensor) -> bool:
    """Return whether two vectors differ by no more than rounding makes of their norm."""
    if plain.shape != fast.shape:
        return False
    error, norm = torch.linalg.vector_norm(plain - fast), torch.linalg.vector_norm(plain)
    return bool(error <= _TOLERANCE * norm.clamp(min=1e-6)) or not bool(norm.isfinite())


def compile_loss(loss: PPOLoss, config: Config) -> None:
    """With `--compile`, compile the loss before the clock of the training starts."""
    if not config.compile:
        return
    started = time.perf_counter()
    if config.torch_deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)  # the compiler reads it, too
    loss.compile_loss()
    print_from_rank_zero(f"--compile took {time.perf_counter() - started:.1f} s")


def make_optimizer(module: nn.Module, config: Config) -> ClippedAdam:
    """Make the Adam that trains a module's parameters, and clips their gradient first."""
    return ClippedAdam(module.parameters(), config.learning_rate, config.adam_eps, config.max_grad_norm)
