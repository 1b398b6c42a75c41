"""The loss of an agent made of perceptrons with its gradient in closed form, as one node of the autograd graph.

At PPO's usual sizes a gradient step does little arithmetic and much bookkeeping: autograd visits some hundred small
operations. Here they are written out, a fraction of the work. What they compute is `loss.ppo_loss` and its
derivative; `tests/test_fused.py` holds them against autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fabric_ppo.agent import Agent
from fabric_ppo.batch import Rows
from fabric_ppo.config import Config
from fabric_ppo.distributions import Categorical, DiagonalGaussian
from fabric_ppo.loss import MinibatchLoss
from fabric_ppo.networks import FlatWeights

_ROWS_AT_A_TIME = 4096
"""What lies between layers of more rows on a CPU leaves its caches."""


def can_fuse(agent: Agent, device_type: str) -> bool:
    """Whether `FusedLoss` knows this agent's parts, at the precision in force."""
    known = isinstance(agent.distribution, (Categorical, DiagonalGaussian))
    known = known and not (agent.encoder.has_weights or agent.encoder.num_masks)
    known = (
        known and agent.memory is None and not (agent.policy.has_layer_norm or agent.architecture.state_dependent_std)
    )
    mixes_precisions = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return known and not mixes_precisions


class FusedLoss:
    """`loss.ppo_loss` of an agent as a function of minibatches, for as long as its weights keep their memory."""

    def __init__(self, agent: Agent, weights: FlatWeights, config: Config) -> None:
        """Look up what is needed in every minibatch.

        Args:
            agent: one that `can_fuse`.
            weights: those of `agent`; gradients reach `weights.flat`.
            config: hyperparameters.
        """
        self._agent, self._weights, self._config = agent, weights, config
        self._policy, self._value = agent.policy.closed_form(), agent.value.closed_form()
        self._trunk = None if agent.trunk is None else agent.trunk.closed_form()
        self._differentiate = self._categorical if agent.log_std is None else self._gaussian

    def __call__(self, rows: Rows) -> MinibatchLoss:
        """The loss of a minibatch; good for one `backward`, before the next call."""
        with torch.no_grad():
            loss, grad = self._evaluate(rows)
        return loss._replace(loss=_WithGradient.apply(self._weights.flat, loss.loss, grad))

    def _evaluate(self, rows: Rows) -> tuple[MinibatchLoss, Tensor]:
        """The loss and its gradient, which lies in memory that the next call overwrites; both are sums over rows."""
        if len(rows.weights) <= _ROWS_AT_A_TIME or rows.weights.device.type != "cpu":
            return self._evaluate_block(rows)
        blocks = map(Rows, *(column.split(_ROWS_AT_A_TIME) for column in rows[:-1]))
        seen, total = [], torch.zeros_like(self._weights.flat)
        for block in blocks:
            loss, grad = self._evaluate_block(block)
            seen.append(loss)
            total.add_(grad)
        losses, *columns = zip(*seen, strict=True)
        return MinibatchLoss(torch.stack(losses).sum(), *(torch.cat(column) for column in columns)), grad.copy_(total)

    def _evaluate_block(self, rows: Rows) -> tuple[MinibatchLoss, Tensor]:
        features = self._agent.inputs(rows.obs)
        trunk_values = [] if self._trunk is None else self._trunk.layer_values(features)
        features = trunk_values[-1] if trunk_values else features
        policy_values = self._policy.layer_values(features)
        value_values = self._value.layer_values(features)
        grad, parts = self._weights.gradient()
        values = value_values[-1].squeeze(-1)
        # row by row, minus the loss without its entropy term
        objective, log_probs, entropy, grad_policy = self._differentiate(policy_values[-1], rows, parts)
        grad_value = self._subtract_value_loss(objective, values, rows)
        if self._config.ent_coef:
            objective.add_(entropy, alpha=self._config.ent_coef)
        loss = torch.dot(rows.weights, objective).neg_()
        grad_policy = self._policy.backward_into(parts["policy"], policy_values, grad_policy)
        grad_value = self._value.backward_into(parts["value"], value_values, grad_value.unsqueeze(-1))
        if self._trunk is not None:
            grad_trunk = self._policy.grad_features(grad_policy).add_(self._value.grad_features(grad_value))
            self._trunk.backward_into(parts["trunk"], trunk_values, grad_trunk)
        return MinibatchLoss(loss, log_probs, entropy, values), grad

    def _subtract_value_loss(self, objective: Tensor, values: Tensor, rows: Rows) -> Tensor:
        """Subtract `vf_coef` times the value loss from `objective`; the gradient with respect to `values`."""
        config = self._config
        error = values - rows.returns
        if not config.clip_vloss:
            objective.addcmul_(error, error, value=-0.5 * config.vf_coef)
        else:
            moved = values - rows.values
            bounded_error = rows.values + moved.clamp(-config.clip_coef, config.clip_coef) - rows.returns
            squared, bounded = error.square(), bounded_error.square()
            objective.sub_(torch.maximum(squared, bounded), alpha=0.5 * config.vf_coef)
            error = torch.where(squared >= bounded, error, bounded_error * (moved.abs() <= config.clip_coef))
        return error.mul_(rows.weights).mul_(config.vf_coef)

    def _surrogate(self, log_probs: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The clipped surrogate of each row, and the derivative of its weighted sum with respect to `log_probs`."""
        clip_coef = self._config.clip_coef
        ratio = (log_probs - rows.log_probs).exp_()
        surrogate = rows.advantages * ratio
        clipped = ratio.clamp_(1 - clip_coef, 1 + clip_coef).mul_(rows.advantages)
        is_clipped = surrogate > clipped
        objective = torch.minimum(surrogate, clipped)
        return objective, surrogate.masked_fill_(is_clipped, 0.0).mul_(rows.weights)

    def _categorical(self, logits: Tensor, rows: Rows, _: dict[str, list[Tensor]]) -> tuple[Tensor, ...]:
        """Surrogate, log-probability and entropy of each row, and the loss's gradient with respect to `logits`."""
        log_p = torch.log_softmax(logits, dim=-1)
        chosen = rows.actions.unsqueeze(-1)
        log_probs = log_p.gather(-1, chosen).squeeze(-1)
        objective, slope = self._surrogate(log_probs, rows)
        p = log_p.exp()
        entropy = torch.linalg.vecdot(p, log_p).neg_()
        # d log p[a] / d logits = onehot(a) - p;  d entropy / d logits = -p (log p + entropy)
        scale = slope.unsqueeze(-1)
        if self._config.ent_coef:
            scale = torch.addcmul(
                scale, rows.weights.unsqueeze(-1), log_p + entropy.unsqueeze(-1), value=self._config.ent_coef
            )
        grad = p.mul_(scale).scatter_add_(-1, chosen, slope.neg_().unsqueeze(-1))
        return objective, log_probs, entropy, grad

    def _gaussian(self, means: Tensor, rows: Rows, parts: dict[str, list[Tensor]]) -> tuple[Tensor, ...]:
        """As `_categorical`, with respect to `means`; the gradient of `log_std` goes into its part."""
        free, config = self._agent.log_std, self._config
        assert free is not None
        log_std = self._agent.bounded(free)
        params = torch.cat([means, log_std.expand_as(means)], dim=-1)
        log_probs, entropy = self._agent.distribution.log_prob_and_entropy(params, rows.actions)
        objective, slope = self._surrogate(log_probs, rows)
        inverse_std = torch.exp(-log_std)
        scaled = (rows.actions.reshape(means.shape) - means).mul_(inverse_std)
        # d log p / d mean = z / std;  d log p / d log std = z^2 - 1;  d entropy / d log std = 1
        grad_means = (scaled * inverse_std).mul_(slope.neg_().unsqueeze(-1))
        (grad_log_std,) = parts["log_std"]
        torch.mv(scaled.square_().sub_(1).t(), slope, out=grad_log_std)
        if config.ent_coef:
            grad_log_std.sub_(rows.weights.sum(), alpha=config.ent_coef)
        if log_std is not free:
            grad_log_std.masked_fill_(log_std != free, 0.0)
        return objective, log_probs, entropy, grad_means


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient with respect to `flat` is known."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss, None, None
