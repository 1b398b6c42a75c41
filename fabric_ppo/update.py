"""One update: epochs x minibatches, with nothing in the loop that waits for a device."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fabric_ppo.agent import Agent, Evaluation
from fabric_ppo.batch import Batch, Rows, blank_rows
from fabric_ppo.config import LEARNING_RATES, Config
from fabric_ppo.distributed import ALONE, Ranks
from fabric_ppo.errors import TrainingError
from fabric_ppo.fused import FusedLoss, can_fuse
from fabric_ppo.launch import say
from fabric_ppo.loss import Losses, MinibatchLoss, ppo_loss
from fabric_ppo.networks import FlatWeights
from fabric_ppo.optimizer import ClippedAdam
from fabric_ppo.profile import timed

_KL = Losses._fields[1:].index("approx_kl")  # its place in what `run_epochs` returns
_KL_MARGIN = 1.5
_RATE_STEP = 1.5


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


def make_optimizer(module: nn.Module, config: Config) -> ClippedAdam:
    """Adam over a module's parameters, which clips their gradient first."""
    return ClippedAdam(module.parameters(), config.learning_rate, config.adam_eps, config.max_grad_norm)


def annealed(config: Config, update: int, num_updates: int) -> Config:
    """The hyperparameters of an update: those that anneal fall linearly to zero at the end of the run."""
    now = copy.copy(config)
    for name, anneals in (
        ("learning_rate", config.anneal_lr),
        ("clip_coef", config.anneal_clip_coef),
        ("ent_coef", config.anneal_ent_coef),
    ):
        if anneals:
            object.__setattr__(now, name, getattr(config, name) * (1 - update / num_updates))
    return now


class HasRate(Protocol):
    """An optimizer, or what stands for one that lives in another process."""

    param_groups: list[dict[str, Any]]


def begin_update(module: nn.Module, optimizer: HasRate, config: Config, update: int, num_updates: int) -> Config:
    """Give the optimizer and the PPOLoss inside `module` the hyperparameters of an update, and return them.

    With `desired_kl` the learning rate is the optimizer's own, as `adapt_learning_rate` left it.
    """
    now = annealed(config, update, num_updates)
    if config.desired_kl is not None:
        object.__setattr__(now, "learning_rate", optimizer.param_groups[0]["lr"])
    for group in optimizer.param_groups:
        group["lr"] = now.learning_rate
    if config.anneal_clip_coef or config.anneal_ent_coef:
        for each in module.modules():
            if isinstance(each, PPOLoss):
                each.use(now)
    return now


def adapt_learning_rate(optimizer: HasRate, config: Config, approx_kl: Tensor | float) -> None:
    """With `desired_kl`, set the next update's learning rate by how far the policy has moved in this one.

    The rule of rsl_rl (arXiv 2109.11978), with the KL divergence of a whole update instead of a minibatch's.

    Args:
        optimizer: holds the rate.
        config: hyperparameters.
        approx_kl: mean over the update's minibatches and over all ranks, so that all decide alike.
    """
    if config.desired_kl is None:
        return
    least, most = LEARNING_RATES
    for group in optimizer.param_groups:
        if approx_kl > 2 * config.desired_kl:
            group["lr"] = max(least, group["lr"] / _RATE_STEP)
        elif approx_kl < config.desired_kl / 2:
            group["lr"] = min(most, group["lr"] * _RATE_STEP)


class PPOLoss(nn.Module):
    """The PPO loss of an agent as a module: minibatch -> MinibatchLoss, with all weights in one parameter."""

    def __init__(self, agent: Agent, config: Config) -> None:
        """Take over the weights of `agent`, which goes on acting with them."""
        super().__init__()
        self.weights = FlatWeights(agent)
        self._agent = (agent,)  # in a tuple, so that its weights are not registered twice
        self._config = config
        self._fused: FusedLoss | None = None
        self._compiled: Callable[..., Any] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PPOLoss:
        """`.to(...)` gives the weights new memory."""
        super()._apply(fn, recurse)
        self._fused = None
        return self

    def forward(self, rows: Rows) -> MinibatchLoss:
        """The loss of a minibatch: compiled, or in closed form where that is known, or by autograd."""
        (agent,) = self._agent
        agent.put_back()
        if self._compiled is not None:
            return MinibatchLoss(*self._compiled(*rows))
        if not can_fuse(agent, rows.weights.device.type):
            return autograd_loss(self.weights, rows, self._config)
        if self._fused is None:
            self._fused = FusedLoss(agent, self.weights, self._config)
        return self._fused(rows)

    def use(self, config: Config) -> None:
        """Take hyperparameters of the loss from `config` from now on."""
        self._config, self._fused = config, None

    def compile_loss(self) -> None:
        """From now on, take the loss by autograd, compiled: once, for minibatches of any size, by a first try."""
        (agent,) = self._agent

        def columns(*rows: Tensor) -> tuple[Tensor, ...]:
            return tuple(autograd_loss(self.weights, Rows(*rows), self._config))

        self._compiled = torch.compile(columns, dynamic=True)
        loss = self(blank_rows(agent, self._config.per_rank_batch_size)).loss
        torch.autograd.grad(loss, self.weights.flat)  # the backward pass is compiled when it is first needed


def compile_loss(module: nn.Module, ranks: Ranks, config: Config) -> None:
    """With `--compile`, compile the PPOLoss inside `module`, before the clock of the training starts."""
    if not config.compile:
        return
    started = time.perf_counter()
    if config.torch_deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)  # tells the compiler too
    for each in module.modules():
        if isinstance(each, PPOLoss):
            each.compile_loss()
    if ranks.rank == 0:
        say(f"--compile took {time.perf_counter() - started:.1f} s", sys.stderr)


def autograd_loss(agent: Callable[..., Evaluation], rows: Rows, config: Config) -> MinibatchLoss:
    """The PPO loss of any agent."""
    now = agent(rows.obs, rows.actions, rows.sequences)
    return MinibatchLoss(losses_of(rows, now, config).loss, *(column.detach() for column in now))


def losses_of(rows: Rows, now: Evaluation, config: Config) -> Losses:
    """`loss.ppo_loss` of rows, for which the agent as it is says `now`."""
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
    loss_fn: Callable[[Rows], MinibatchLoss],
    batch: Batch,
    step: Callable[[Tensor], Tensor],
    config: Config,
    ranks: Ranks = ALONE,
) -> Stats:
    """Train on a batch for `update_epochs` epochs, or fewer with `target_kl`.

    Args:
        loss_fn: minibatch -> MinibatchLoss, through the wrapped module where gradients are to be synchronised.
        batch: this rank's rows.
        step: takes the loss; backward, clip, optimizer step; returns the gradient's norm.
        config: hyperparameters.
        ranks: those that train together, which end their epochs together.
    """
    started = time.perf_counter()
    means, moments = run_epochs(loss_fn, batch, step, config, ranks), _value_moments(batch)
    scalars: list[float] = torch.cat([means, moments]).tolist()  # the first wait for the device
    policy_loss, value_loss, entropy, approx_kl, clip_fraction, grad_norm, gradient_steps, *sums = scalars
    return Stats(
        policy_loss=policy_loss,
        value_loss=value_loss,
        entropy=entropy,
        approx_kl=approx_kl,
        clip_fraction=clip_fraction,
        grad_norm=grad_norm,
        value_moments=tuple(sums),
        gradient_steps=round(gradient_steps),
        seconds=time.perf_counter() - started,
    )


def run_epochs(
    loss_fn: Callable[[Rows], MinibatchLoss],
    batch: Batch,
    step: Callable[[Tensor], Tensor],
    config: Config,
    ranks: Ranks = ALONE,
) -> Tensor:
    """The gradient steps of `ppo_update`; nothing here waits for a device, but `target_kl` once an epoch.

    Returns:
        Policy loss, value loss, entropy, approx_kl, clip_fraction and gradient norm, each the mean over the
        minibatches, and the number of those, `[7]` float64.
    """
    loss_fn, step = timed("loss")(loss_fn), timed("backward")(step)
    one_by_one = config.target_kl is not None
    sums, count = [], 0
    for epochs in batch.stretches(config.update_epochs, one_by_one):
        minibatches = batch.minibatches(epochs, config.per_rank_batch_size)
        seen, norms = [], []
        for rows in minibatches:
            loss, *now = loss_fn(rows)
            norms.append(step(loss))
            seen.append(now)
        sums.append(_logged(minibatches.rows, seen, norms, config))
        count += len(minibatches)
        if one_by_one and _is_too_far(sums[-1][_KL] / len(minibatches), config, ranks):
            break
    return torch.cat([torch.stack(sums).sum(0) / count, sums[0].new_full((1,), count)])


def _is_too_far(approx_kl: Tensor, config: Config, ranks: Ranks) -> bool:
    """Whether the policy has moved as far as it may in one update: the mean over ranks, so that all say the same."""
    assert config.target_kl is not None
    return bool(ranks.gather(approx_kl).mean() > _KL_MARGIN * config.target_kl)


@torch.no_grad()
def _logged(rows: Rows, seen: list[list[Tensor]], norms: list[Tensor], config: Config) -> Tensor:
    """What is logged of the rows of some minibatches, for which the agent said `seen`, as sums over those; `[6]`."""
    now = Evaluation(*(torch.cat(column).double() for column in zip(*seen, strict=True)))
    rows = Rows(*rows[:2], *(column.double() for column in rows[2:-1]))
    losses = losses_of(rows, now, config)
    return torch.stack([*losses[1:], torch.stack(norms).double().sum()])


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
            TrainingError: a loss, gradient or weight is not finite; the weights are those that were kept.
        """
        logged = ("policy_loss", "value_loss", "entropy", "approx_kl", "grad_norm")
        what = [name for name in logged if not math.isfinite(getattr(stats, name))]
        weights = self._agent.state_dict()
        if not bool(torch.cat([tensor.flatten() for tensor in weights.values()]).isfinite().all()):
            broken = {name for name, tensor in weights.items() if not bool(tensor.isfinite().all())}
            what.append("weights" if broken & dict(self._agent.named_parameters()).keys() else "running statistics")
        if what:
            for name, tensor in weights.items():
                tensor.copy_(self.kept[name])
            hint = "" if what == ["running statistics"] else "; lower --learning-rate?"
            raise TrainingError(f"update {update + 1}: {', '.join(what)} not finite{hint}")
        for name, tensor in weights.items():
            self.kept[name].copy_(tensor)
