"""One update: epochs x minibatches (arXiv 1707.06347, algorithm 1).

Nothing in the loop waits for a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fabric_ppo.agents.agent import Evaluation
from fabric_ppo.config import Config
from fabric_ppo.ppo.batch import Batch, Rows
from fabric_ppo.ppo.loss import Coefficients, Losses, LossFn, ppo_loss
from fabric_ppo.process.group import ALONE, Ranks
from fabric_ppo.process.metrics import Metrics, metric
from fabric_ppo.process.profile import timed

_KL = Losses._fields[1:].index("approx_kl")  # its place among the sums of an epoch
_KL_MARGIN = 1.5


@dataclass(frozen=True)
class UpdateStats(Metrics):
    """Numbers of an update: means over its minibatches, of this rank's share of them.

    The sums are over this rank's transitions, of the returns r and of what the values missed of
    them, d: from them all ranks together know the explained variance, `1 - Var[d] / Var[r]`.
    """

    policy_loss: float = metric("mean", "Loss/policy_loss")
    value_loss: float = metric("mean", "Loss/value_loss")
    entropy_loss: float = metric("mean", "Loss/entropy_loss")
    approx_kl: float = metric("mean", "Info/approx_kl")
    clip_fraction: float = metric("mean", "Info/clip_fraction")
    grad_norm: float = metric("mean", "Info/grad_norm")
    gradient_steps: float = metric("max")
    num_rows: float = metric("sum")
    return_sum: float = metric("sum")
    return_squares: float = metric("sum")
    error_sum: float = metric("sum")
    error_squares: float = metric("sum")
    seconds: float = metric("max", "Time/update_seconds")

    def tagged(self) -> dict[str, float]:
        """See `Metrics.tagged`; constant returns have no variance to be explained."""
        values, n = super().tagged(), self.num_rows
        variance = self.return_squares / n - (self.return_sum / n) ** 2
        if variance > 0:
            missed = self.error_squares / n - (self.error_sum / n) ** 2
            values["Info/explained_variance"] = 1 - missed / variance
        return values


def ppo_update(
    loss_fn: LossFn,
    batch: Batch,
    step: Callable[[Tensor], Tensor],
    coefs: Coefficients,
    config: Config,
    ranks: Ranks = ALONE,
) -> UpdateStats:
    """Train on a batch for `update_epochs` epochs, or fewer with `target_kl`.

    Args:
        loss_fn: the loss of a minibatch.
        batch: this rank's rows.
        step: takes the loss; backward, clip, optimizer step; returns the gradient's norm.
        coefs: the loss's hyperparameters.
        config: epochs, batch size and `target_kl`.
        ranks: those that train together, which end their epochs together.
    """
    started = time.perf_counter()
    means = run_epochs(loss_fn, batch, step, coefs, config, ranks)
    values = torch.cat([means, _value_sums(batch)]).cpu()  # the first wait for the device
    seconds = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
    return UpdateStats.of(torch.cat([values, seconds]))


def run_epochs(
    loss_fn: LossFn,
    batch: Batch,
    step: Callable[[Tensor], Tensor],
    coefs: Coefficients,
    config: Config,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Take the gradient steps of `ppo_update`.

    Nothing here waits for a device, but for `target_kl`, once an epoch.

    Returns:
        The first fields of UpdateStats up to `gradient_steps`, `[7]` float64.
    """
    loss_fn, step = timed("loss")(loss_fn), timed("backward")(step)
    one_by_one = config.target_kl is not None
    sums, count = [], 0
    for epochs in batch.stretches(config.update_epochs, one_by_one):
        minibatches = batch.minibatches(epochs, config.per_rank_batch_size)
        evaluations, norms = [], []
        for rows in minibatches:
            loss, *evaluation = loss_fn(rows, coefs)
            norms.append(step(loss))
            evaluations.append(evaluation)
        sums.append(_loss_sums(minibatches.rows, evaluations, norms, coefs))
        count += len(minibatches)
        if one_by_one and _is_too_far(sums[-1][_KL] / len(minibatches), config, ranks):
            break
    return torch.cat([torch.stack(sums).sum(0) / count, sums[0].new_full((1,), count)])


def _is_too_far(approx_kl: Tensor, config: Config, ranks: Ranks) -> bool:
    """Return whether the policy has moved as far as it may in one update.

    It goes by the mean over ranks, so that all stop alike.
    """
    assert config.target_kl is not None
    return bool(ranks.gather(approx_kl).mean() > _KL_MARGIN * config.target_kl)


@torch.no_grad()
def _loss_sums(rows: Rows, evaluations: list[list[Tensor]], norms: list[Tensor], coefs: Coefficients) -> Tensor:
    """Sum the loss's parts, and the gradient's norm, over some minibatches; `[6]` float64.

    All minibatches at once, in float64: their weights make each dot product a sum of means.
    """
    columns = zip(*evaluations, strict=True)
    new = Evaluation(*(torch.cat(column).double() for column in columns))
    rows = Rows(*rows[:2], *(column.double() for column in rows[2:-1]))
    losses = ppo_loss(rows, new, coefs)
    return torch.stack([*losses[1:], torch.stack(norms).double().sum()])


def _value_sums(batch: Batch) -> Tensor:
    """Compute the sums of UpdateStats over this rank's share of the rows, `[5]` float64."""
    share = slice(batch.share, None, batch.num_shares)
    columns = (batch.rows.weights, batch.rows.returns, batch.rows.values)
    weights, returns, values = (column[share].double() for column in columns)
    error = returns - values
    of_returns = [weights @ returns, weights @ returns.square()]
    return torch.stack([weights.sum(), *of_returns, weights @ error, weights @ error.square()])
