"""The PPO loss with its gradient in closed form; stands for `ppo.loss.minibatch_loss`.

It is for agents made of perceptrons. At PPO's usual sizes a gradient step does little arithmetic
and much bookkeeping: autograd visits some hundred small operations. Here they are written out, at a
fraction of the work, as one node of the autograd graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fabric_ppo.agents.agent import Agent, declared_forms
from fabric_ppo.fast.closed_form import ClosedForm
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, MinibatchLoss

_BLOCK_ROWS = 4096
"""Rows of a block on the CPU: with more, the values between layers no longer fit its caches."""


def has_closed_form(agent: Agent) -> bool:
    """Return True if every part of this agent has a closed form."""
    return "closed" in declared_forms(agent)


def mixes_precisions(device_type: str) -> bool:
    """Return True if autocast is on, which changes only operations that autograd records."""
    is_available = torch.amp.is_autocast_available(device_type)
    return is_available and torch.is_autocast_enabled(device_type)


class FusedLoss:
    """The loss of an agent as a function of minibatches, while its weights keep their memory."""

    def __init__(self, agent: Agent, weights: FlatWeights) -> None:
        """Refer to the layers of an agent.

        Args:
            agent: one for which `has_closed_form` is true.
            weights: its weights; gradients flow to `weights.flat`.
        """
        self._agent, self._weights = agent, weights
        self._policy, self._value = ClosedForm(agent.policy), ClosedForm(agent.value)
        self._trunk = None if agent.trunk is None else ClosedForm(agent.trunk)
        self._is_raw = agent.obs_moments is None and agent.encoder.is_identity(agent.dtype)
        self._differentiate = self._categorical if agent.log_std is None else self._gaussian

    def __call__(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
        """Compute the loss of a minibatch; `backward` may be called once, before the next call."""
        # the gradient is computed here, together with the loss; `backward` only hands it over
        with torch.no_grad():
            loss, grad = self._evaluate(rows, coefs)
        return loss._replace(loss=_WithGradient.apply(self._weights.flat, loss.loss, grad))

    def _evaluate(self, rows: Rows, coefs: Coefficients) -> tuple[MinibatchLoss, Tensor]:
        """Return the loss of a minibatch and its gradient `[n]`, which the next call overwrites."""
        if len(rows.weights) <= _BLOCK_ROWS or rows.weights.device.type != "cpu":
            return self._evaluate_block(rows, coefs)
        blocks = map(Rows, *(column.split(_BLOCK_ROWS) for column in rows[:-1]))
        of_blocks, total = [], torch.zeros_like(self._weights.flat)
        # loss and gradient are sums over rows, so those of the blocks add up
        for block in blocks:
            loss, grad = self._evaluate_block(block, coefs)
            of_blocks.append(loss)
            total.add_(grad)
        losses, *columns = zip(*of_blocks, strict=True)
        joined = MinibatchLoss(torch.stack(losses).sum(), *(torch.cat(each) for each in columns))
        return joined, grad.copy_(total)

    def _evaluate_block(self, rows: Rows, coefs: Coefficients) -> tuple[MinibatchLoss, Tensor]:
        """Return what `_evaluate` does, for all rows at once."""
        features = rows.obs if self._is_raw else self._agent.inputs(rows.obs)
        trunk_values = [] if self._trunk is None else self._trunk.layer_values(features)
        features = trunk_values[-1] if trunk_values else features
        policy_values = self._policy.layer_values(features)
        value_values = self._value.layer_values(features)
        grad, parts = self._weights.gradient()
        values = value_values[-1].squeeze(-1)
        # a row's objective is minus its loss (equation 9 of arXiv 1707.06347), built up term by
        # term: surrogate, then value loss, then entropy
        objective, log_probs, entropy, grad_policy = self._differentiate(policy_values[-1], rows, coefs, parts)
        grad_value = _subtract_value_loss(objective, values, rows, coefs)
        if coefs.ent_coef:
            objective.add_(entropy, alpha=coefs.ent_coef)
        loss = torch.dot(rows.weights, objective).neg_()
        grad_policy = self._policy.backward_into(parts["policy"], policy_values, grad_policy)
        grad_value = self._value.backward_into(parts["value"], value_values, grad_value.unsqueeze(-1))
        # both heads send their gradients into a shared trunk, where they add up
        if self._trunk is not None:
            grad_trunk = self._policy.grad_features(grad_policy).add_(self._value.grad_features(grad_value))
            self._trunk.backward_into(parts["trunk"], trunk_values, grad_trunk)
        return MinibatchLoss(loss, log_probs, entropy, values), grad

    def _categorical(
        self, logits: Tensor, rows: Rows, coefs: Coefficients, _: dict[str, list[Tensor]]
    ) -> tuple[Tensor, ...]:
        """Differentiate surrogate and entropy bonus with respect to `logits [b, n]`.

        Returns:
            Surrogate, log-probability and entropy of each row, `[b]`, and the gradient of the loss
            `[b, n]`.
        """
        log_p = torch.log_softmax(logits, dim=-1)
        chosen = rows.actions.unsqueeze(-1)
        log_probs = log_p.gather(-1, chosen).squeeze(-1)
        objective, slope = _surrogate(log_probs, rows, coefs)
        p = log_p.exp()
        entropy = torch.linalg.vecdot(p, log_p).neg_()
        # d log p[a] / d logits = onehot(a) - p;  d entropy / d logits = -p (log p + entropy)
        # so with slope s and entropy weight e the loss has the gradient
        # p (s + e (log p + entropy)) - s onehot(a), without a [b, n] matrix of onehots
        scale = slope.unsqueeze(-1)
        if coefs.ent_coef:
            weights = rows.weights.unsqueeze(-1)
            of_entropy = log_p + entropy.unsqueeze(-1)
            scale = torch.addcmul(scale, weights, of_entropy, value=coefs.ent_coef)
        grad = p.mul_(scale).scatter_add_(-1, chosen, slope.neg_().unsqueeze(-1))
        return objective, log_probs, entropy, grad

    def _gaussian(
        self, means: Tensor, rows: Rows, coefs: Coefficients, parts: dict[str, list[Tensor]]
    ) -> tuple[Tensor, ...]:
        """Differentiate surrogate and entropy bonus with respect to `means [b, n]`.

        It returns what `_categorical` does, and writes the gradient of `log_std` into its part.
        """
        free = self._agent.log_std
        assert free is not None
        log_std = self._agent.bounded(free)
        params = torch.cat([means, log_std.expand_as(means)], dim=-1)
        log_probs, entropy = self._agent.distribution.log_prob_and_entropy(params, rows.actions)
        objective, slope = _surrogate(log_probs, rows, coefs)
        inverse_std = torch.exp(-log_std)
        scaled = (rows.actions.reshape(means.shape) - means).mul_(inverse_std)
        # with z = (a - mean) / std:
        # d log p / d mean = z / std;  d log p / d log std = z^2 - 1;  d entropy / d log std = 1
        grad_means = (scaled * inverse_std).mul_(slope.neg_().unsqueeze(-1))
        (grad_log_std,) = parts["log_std"]
        torch.mv(scaled.square_().sub_(1).t(), slope, out=grad_log_std)
        if coefs.ent_coef:
            grad_log_std.sub_(rows.weights.sum(), alpha=coefs.ent_coef)
        if log_std is not free:  # beyond a bound there is no gradient
            grad_log_std.masked_fill_(log_std != free, 0.0)
        return objective, log_probs, entropy, grad_means


def _surrogate(log_probs: Tensor, rows: Rows, coefs: Coefficients) -> tuple[Tensor, Tensor]:
    """Compute the clipped surrogate of each row (arXiv 1707.06347, equation 7).

    Args:
        log_probs: `[b]`, with the present weights.
        rows: the minibatch.
        coefs: hyperparameters.

    Returns:
        The surrogate, `[b]`, and the derivative of its weighted sum by `log_probs`, `[b]`.
    """
    ratio = (log_probs - rows.log_probs).exp_()
    surrogate = rows.advantages * ratio
    clipped = ratio.clamp_(1 - coefs.clip_coef, 1 + coefs.clip_coef).mul_(rows.advantages)
    is_clipped = surrogate > clipped
    objective = torch.minimum(surrogate, clipped)
    # d ratio / d log p = ratio; where the minimum is the clipped side, it is constant
    return objective, surrogate.masked_fill_(is_clipped, 0.0).mul_(rows.weights)


def _subtract_value_loss(objective: Tensor, values: Tensor, rows: Rows, coefs: Coefficients) -> Tensor:
    """Subtract `vf_coef` times the value loss from `objective [b]`, in place.

    Returns:
        The derivative of the weighted sum of what was subtracted by `values`, `[b]`.
    """
    error = values - rows.returns
    if not coefs.clip_vloss:
        objective.addcmul_(error, error, value=-0.5 * coefs.vf_coef)
    else:
        moved = values - rows.values
        bounded_error = rows.values + moved.clamp(-coefs.clip_coef, coefs.clip_coef) - rows.returns
        squared, bounded = error.square(), bounded_error.square()
        objective.sub_(torch.maximum(squared, bounded), alpha=0.5 * coefs.vf_coef)
        # the maximum has the derivative of the larger square; that of the bounded one is 0 beyond
        # the bound
        within = moved.abs() <= coefs.clip_coef
        error = torch.where(squared >= bounded, error, bounded_error * within)
    return error.mul_(rows.weights).mul_(coefs.vf_coef)


class _WithGradient(torch.autograd.Function):
    """Node of the autograd graph for a loss whose gradient with respect to `flat` is known."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss, None, None
