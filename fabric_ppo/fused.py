"""The loss of an agent made of two perceptrons with its gradient in closed form, as one node of the autograd graph.

At PPO's usual sizes a gradient step does little arithmetic and much bookkeeping: autograd visits some hundred small
operations. Here they are written out, a third of the work. What they compute is `loss.ppo_loss` and its derivative;
`tests/test_fused.py` holds them against autograd.
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
from fabric_ppo.loss import Losses
from fabric_ppo.networks import FlatWeights


def can_fuse(agent: Agent, device_type: str) -> bool:
    """Whether `fused_loss` knows this agent's distribution, at the precision in force."""
    known = isinstance(agent.distribution, (Categorical, DiagonalGaussian))
    mixes_precisions = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return known and not mixes_precisions


def fused_loss(agent: Agent, weights: FlatWeights, rows: Rows, config: Config) -> Losses:
    """`loss.ppo_loss` of `agent` on a minibatch; its gradient reaches `weights.flat`."""
    return Losses(*_FusedLoss.apply(weights.flat, agent, weights, rows, config))


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, agent: Agent, weights: FlatWeights, rows: Rows, config: Config
    ) -> tuple[Tensor, ...]:
        features = agent.encoder(rows.obs, flat.dtype)
        policy_values = agent.policy.layer_values(features)
        value_values = agent.value.layer_values(features)
        grad, parts = weights.gradient()
        value_loss, grad_value = _value_loss(value_values[-1].squeeze(-1), rows, config)
        distribution = _categorical if agent.log_std is None else _gaussian
        policy_loss, entropy, approx_kl, clip_fraction, grad_policy, grad_log_std = distribution(
            agent, policy_values[-1], rows, config
        )
        agent.policy.backward_into(parts["policy"], policy_values, grad_policy)
        agent.value.backward_into(parts["value"], value_values, grad_value.unsqueeze(-1))
        if grad_log_std is not None:
            parts["log_std"][0].copy_(grad_log_std)
        loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy
        ctx.save_for_backward(grad)
        logged = policy_loss, value_loss, entropy, approx_kl, clip_fraction
        ctx.mark_non_differentiable(*logged)
        return loss, *logged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss, None, None, None, None


def _value_loss(values: Tensor, rows: Rows, config: Config) -> tuple[Tensor, Tensor]:
    """The value loss, and the gradient of `vf_coef` times it with respect to `values`."""
    error = values - rows.returns
    squared = error.square()
    if config.clip_vloss:
        moved = values - rows.values
        bounded_error = rows.values + moved.clamp(-config.clip_coef, config.clip_coef) - rows.returns
        bounded = bounded_error.square()
        inside = moved.abs() <= config.clip_coef
        error = torch.where(squared >= bounded, error, bounded_error * inside)
        squared = torch.maximum(squared, bounded)
    return 0.5 * torch.dot(rows.weights, squared), config.vf_coef * rows.weights * error


def _surrogate(log_probs: Tensor, rows: Rows, config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Policy loss, approx_kl, clip_fraction, and the loss's gradient with respect to `log_probs`."""
    log_ratio = log_probs - rows.log_probs
    ratio = log_ratio.exp()
    surrogate = rows.advantages * ratio
    clipped = rows.advantages * ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
    policy_loss = -torch.dot(rows.weights, torch.minimum(surrogate, clipped))
    grad = -rows.weights * surrogate * (surrogate <= clipped)
    ratio -= 1
    approx_kl = torch.dot(rows.weights, ratio - log_ratio)
    clip_fraction = torch.dot(rows.weights, (ratio.abs_() > config.clip_coef).to(ratio.dtype))
    return policy_loss, approx_kl, clip_fraction, grad


def _categorical(agent: Agent, logits: Tensor, rows: Rows, config: Config) -> tuple[Any, ...]:
    """Losses of a categorical policy, the gradient of the loss with respect to `logits`, and None."""
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    chosen = rows.actions.unsqueeze(-1)
    entropies = -(p * log_p).sum(-1)
    policy_loss, approx_kl, clip_fraction, grad_log_prob = _surrogate(
        log_p.gather(-1, chosen).squeeze(-1), rows, config
    )
    # d log p[a] / d logits = onehot(a) - p;  d entropy / d logits = -p (log p + entropy)
    scale = -grad_log_prob.unsqueeze(-1)
    if config.ent_coef:
        scale = scale + config.ent_coef * rows.weights.unsqueeze(-1) * (log_p + entropies.unsqueeze(-1))
    grad = (p * scale).scatter_add_(-1, chosen, grad_log_prob.unsqueeze(-1))
    return policy_loss, torch.dot(rows.weights, entropies), approx_kl, clip_fraction, grad, None


def _gaussian(agent: Agent, means: Tensor, rows: Rows, config: Config) -> tuple[Any, ...]:
    """Losses of a Gaussian policy, and the gradients of the loss with respect to `means` and `log_std`."""
    assert agent.log_std is not None
    params = torch.cat([means, agent.log_std.expand_as(means)], dim=-1)
    log_probs, entropies = agent.distribution.log_prob_and_entropy(params, rows.actions)
    policy_loss, approx_kl, clip_fraction, grad_log_prob = _surrogate(log_probs, rows, config)
    inverse_std = torch.exp(-agent.log_std)
    scaled = (rows.actions.reshape(means.shape) - means) * inverse_std
    # d log p / d mean = z / std;  d log p / d log std = z^2 - 1;  d entropy / d log std = 1
    grad_means = grad_log_prob.unsqueeze(-1) * scaled * inverse_std
    grad_log_std = grad_log_prob @ (scaled.square() - 1) - config.ent_coef * rows.weights.sum()
    return policy_loss, torch.dot(rows.weights, entropies), approx_kl, clip_fraction, grad_means, grad_log_std
