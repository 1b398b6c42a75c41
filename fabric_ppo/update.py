"""One update: epochs x minibatches, with nothing in the loop that waits for a device."""

from __future__ import annotations

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


def set_learning_rate(optimizer: torch.optim.Optimizer, config: Config, update: int, num_updates: int) -> float:
    """The learning rate of an update: constant, or falling linearly to zero at the end of the run."""
    remaining = 1 - update / num_updates if config.anneal_lr else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * remaining
    return config.learning_rate * remaining


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
    history = []
    for epoch in range(config.update_epochs):
        for rows in batch.minibatches(epoch, config.per_rank_batch_size):
            losses = loss_fn(rows)
            grad_norm = step(losses.loss)
            history.append(torch.stack([*losses[1:], grad_norm]))
    return _stats(history, batch, started)


def _stats(history: list[Tensor], batch: Batch, started: float) -> Stats:
    means = torch.stack(history).mean(0, dtype=torch.float64)
    own = list(batch.rows)
    if batch.num_shares > 1:
        own = [column[batch.share :: batch.num_shares] for column in own]
    rows = Rows(*own)
    weights, returns = rows.weights.double(), rows.returns.double()
    missed = returns - rows.values.double()
    moments = [
        weights.sum(),
        weights @ returns,
        weights @ returns.square(),
        weights @ missed,
        weights @ missed.square(),
    ]
    policy, value, entropy, kl, clipped, norm, *sums = torch.cat([means, torch.stack(moments)]).tolist()
    seconds = time.perf_counter() - started
    return Stats(policy, value, entropy, kl, clipped, norm, tuple(sums), len(history), seconds)


class Guard:
    """Keeps the weights that an update starts from, and puts them back if it ends with something not finite."""

    def __init__(self, agent: nn.Module) -> None:
        """Watch `agent`'s weights."""
        self._tensors = [*agent.parameters(), *agent.buffers()]
        self._kept = [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def check(self, stats: Stats, update: int) -> None:
        """Keep the weights as they are now.

        Raises:
            TrainingError: a loss, gradient or weight is not finite; the weights are those before this update.
        """
        what = [
            name for name in ("policy_loss", "value_loss", "entropy", "grad_norm") if not _finite(getattr(stats, name))
        ]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self._tensors):
            what.append("weights")
        if what:
            for tensor, kept in zip(self._tensors, self._kept, strict=True):
                tensor.copy_(kept)
            raise TrainingError(f"update {update + 1}: {', '.join(what)} not finite; lower --learning-rate?")
        for tensor, kept in zip(self._tensors, self._kept, strict=True):
            kept.copy_(tensor)


def _finite(value: float) -> bool:
    return value - value == 0
