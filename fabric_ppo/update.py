"""One update: epochs x minibatches, with nothing in the loop that waits for a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fabric_ppo.agent import Agent, Evaluation
from fabric_ppo.batch import Batch, Rows
from fabric_ppo.config import Config
from fabric_ppo.fused import can_fuse, fused_loss
from fabric_ppo.loss import Losses, ppo_loss
from fabric_ppo.networks import FlatWeights


class TrainingError(RuntimeError):
    """Training cannot go on: something is not finite."""


@dataclass(frozen=True)
class Stats:
    """Means over the minibatches of an update, of this rank's share.

    `value_moments` are the sums `(n, r, r^2, d, d^2)` over this rank's transitions, r the returns and d what the
    values missed of them, from which all ranks together know the explained variance. `seconds` is what it took.
    """

    policy_loss: float
    value_loss: float
    entropy: float
    approx_kl: float
    clip_fraction: float
    grad_norm: float
    value_moments: tuple[float, ...]
    gradient_steps: int
    seconds: float


def make_optimizer(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Adam over a module's parameters, one kernel a step."""
    return torch.optim.Adam(module.parameters(), lr=config.learning_rate, eps=config.adam_eps, fused=True)


def learning_rate(config: Config, update: int, num_updates: int) -> float:
    """The learning rate of an update: constant, or falling linearly to zero at the end of the run."""
    return config.learning_rate * (1 - update / num_updates if config.anneal_lr else 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: Config, update: int, num_updates: int) -> float:
    """Set and return `learning_rate(...)`."""
    rate = learning_rate(config, update, num_updates)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


class PPOLoss(nn.Module):
    """The PPO loss of an agent as a module: minibatch -> Losses, with all weights in one parameter."""

    def __init__(self, agent: Agent, config: Config) -> None:
        """Take over the weights of `agent`, which goes on acting with them."""
        super().__init__()
        self.weights = FlatWeights(agent)
        self._agent = (agent,)  # in a tuple, so that its weights are not registered twice
        self._config = config

    def forward(self, rows: Rows) -> Losses:
        """The loss of a minibatch; in closed form where that is known, by autograd otherwise."""
        (agent,) = self._agent
        if can_fuse(agent, rows.weights.device.type):
            return fused_loss(agent, self.weights, rows, self._config)
        return autograd_loss(self.weights, rows, self._config)


def autograd_loss(agent: Callable[[Tensor, Tensor], Evaluation], rows: Rows, config: Config) -> Losses:
    """The PPO loss of any agent."""
    now = agent(rows.obs, rows.actions)
    return ppo_loss(
        log_probs=now.log_probs,
        entropy=now.entropy,
        values=now.values,
        old_log_probs=rows.log_probs,
        old_values=rows.values,
        advantages=rows.advantages,
        returns=rows.returns,
        weights=rows.weights,
        clip_coef=config.clip_coef,
        vf_coef=config.vf_coef,
        ent_coef=config.ent_coef,
        clip_vloss=config.clip_vloss,
    )


def ppo_update(
    loss_fn: Callable[[Rows], Losses], batch: Batch, step: Callable[[Tensor], Tensor], config: Config
) -> Stats:
    """Train on a batch for `update_epochs` epochs.

    Args:
        loss_fn: minibatch -> Losses, through the wrapped module where gradients are to be synchronised.
        batch: this rank's rows.
        step: takes the loss; backward, clip, optimizer step; returns the gradient's norm.
        config: hyperparameters.
    """
    started = time.perf_counter()
    history = run_epochs(loss_fn, batch, step, config)
    means, moments = history.mean(0, dtype=torch.float64), _value_moments(batch)
    scalars: list[float] = torch.cat([means, moments]).tolist()  # the first wait for the device
    policy_loss, value_loss, entropy, approx_kl, clip_fraction, grad_norm, *sums = scalars
    return Stats(
        policy_loss=policy_loss,
        value_loss=value_loss,
        entropy=entropy,
        approx_kl=approx_kl,
        clip_fraction=clip_fraction,
        grad_norm=grad_norm,
        value_moments=tuple(sums),
        gradient_steps=len(history),
        seconds=time.perf_counter() - started,
    )


def run_epochs(
    loss_fn: Callable[[Rows], Losses], batch: Batch, step: Callable[[Tensor], Tensor], config: Config
) -> Tensor:
    """The gradient steps of `ppo_update`; nothing here waits for a device.

    Returns:
        Policy loss, value loss, entropy, approx_kl, clip_fraction and gradient norm, `[gradient steps, 6]`.
    """
    history = []
    for epoch in range(config.update_epochs):
        for rows in batch.minibatches(epoch, config.per_rank_batch_size):
            losses = loss_fn(rows)
            grad_norm = step(losses.loss)
            history.append(torch.stack([*losses[1:], grad_norm]))
    return torch.stack(history)


def _value_moments(batch: Batch) -> Tensor:
    """`Stats.value_moments` of this rank's share, `[5]` float64."""
    share = slice(batch.share, None, batch.num_shares)
    weights, returns, values = (
        column[share].double() for column in (batch.rows.weights, batch.rows.returns, batch.rows.values)
    )
    missed = returns - values
    return torch.stack(
        [weights.sum(), weights @ returns, weights @ returns.square(), weights @ missed, weights @ missed.square()]
    )


class Guard:
    """Keeps the weights that an update starts from, and puts them back if it ends with something not finite.

    Attributes:
        kept: those weights, by name.
    """

    def __init__(self, agent: nn.Module) -> None:
        """Keep the weights as they are now."""
        self._agent = agent
        self.kept = {name: tensor.clone() for name, tensor in agent.state_dict().items()}

    @torch.no_grad()
    def check(self, stats: Stats, update: int) -> None:
        """Keep the weights as they are now.

        Raises:
            TrainingError: a loss, gradient or weight is not finite; the weights are those before this update.
        """
        logged = ("policy_loss", "value_loss", "entropy", "approx_kl", "grad_norm")
        what = [name for name in logged if not math.isfinite(getattr(stats, name))]
        weights = self._agent.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            what.append("weights")
        if what:
            for name, tensor in weights.items():
                tensor.copy_(self.kept[name])
            raise TrainingError(f"update {update + 1}: {', '.join(what)} not finite; lower --learning-rate?")
        for name, tensor in weights.items():
            self.kept[name].copy_(tensor)
