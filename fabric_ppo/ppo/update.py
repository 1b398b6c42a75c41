"""One update: the epochs and minibatches of arXiv 1707.06347, algorithm 1.

Nothing in the loop waits for a device: numbers are read once, when all steps have been queued.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from fabric_ppo.config import Config
from fabric_ppo.ppo.batch import Batch
from fabric_ppo.ppo.loss import Coefficients, Losses, LossFn
from fabric_ppo.ppo.returned import checked_norm
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.group import ALONE, Ranks
from fabric_ppo.process.metrics import Merge, Metrics, Own, metric, own_metric
from fabric_ppo.process.profile import timed

_KL_MARGIN = 1.5
"""Multiple of `--target-kl` that ends an update's epochs."""
_COMPUTED = (
    *(*Losses._fields[1:], "grad_norm", "gradient_steps"),
    *("num_rows", "return_sum", "return_squares", "error_sum", "error_squares"),
)
"""Fields of UpdateStats in the order in which an update computes them: of `Losses` first."""


@dataclass(frozen=True)
class UpdateStats(Metrics):
    """Numbers of an update: means over this rank's share of its minibatches.

    The sums are over this rank's transitions: of the returns r and of the values' errors d = r - V.
    Added up over all ranks, they give the explained variance, `1 - Var[d] / Var[r]`.

    `own` are the user's own metrics, from `with_metric`.
    """

    derived: ClassVar[tuple[str, ...]] = ("Info/explained_variance",)

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
    own: Own = field(default_factory=dict)

    def with_metric(self, tag: str, value: float | Tensor, merge: Merge = "mean") -> UpdateStats:
        """Return these numbers and one more, to be merged over ranks and logged as `tag`.

        It may be called on some ranks only: those that have the metric are merged.

        Args:
            tag: name in the logs, such as `Info/weight_norm`.
            value: a number, or a tensor of one; for a tensor on a GPU the call waits.
            merge: how ranks merge it.

        Raises:
            ConfigError: the name is taken, or the value is not a single number.
        """
        own = own_metric(tag, value, merge)
        if tag in self.names() | set(self.own):
            raise ConfigError(f"the metric {tag}: another name is expected, this one is taken")
        return replace(self, own={**self.own, **own})

    def tagged(self) -> dict[str, float]:
        """Return `Metrics.tagged` with the explained variance, unless all returns are equal."""
        values, n = super().tagged(), self.num_rows
        # Var[x] = E[x^2] - E[x]^2, from sums, which ranks can add
        variance = self.return_squares / n - (self.return_sum / n) ** 2
        if variance > 0:
            unexplained = self.error_squares / n - (self.error_sum / n) ** 2
            values["Info/explained_variance"] = 1 - unexplained / variance
        return values | {tag: value for tag, (_, value) in self.own.items()}


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
        loss_fn: loss of a minibatch.
        batch: this rank's rows.
        step: backward pass, gradient clipping and optimizer step for a loss; returns the
            gradient's norm, a scalar tensor.
        coefs: the loss's hyperparameters.
        config: epochs, batch size and `target_kl`.
        ranks: the ranks that train together; with `target_kl` they stop after the same epoch.

    Raises:
        ConfigError: `step` returns no scalar tensor, or UpdateStats lacks a part of the loss.
    """
    _require_same_parts()
    started = time.perf_counter()
    means = run_epochs(loss_fn, batch, step, coefs, config, ranks)
    # one copy of all numbers, which is the first to wait for the device; before it a clock would
    # measure how fast steps are queued
    values = torch.cat([means, _value_sums(batch)]).tolist()
    by_name = dict(zip(_COMPUTED, values, strict=True))
    return UpdateStats(**by_name, seconds=time.perf_counter() - started)


def _require_same_parts() -> None:
    """Raise a ConfigError unless UpdateStats has a field for each part of the loss, as an edit may forget."""
    parts, declared = Losses._fields[1:], [each.name for each in fields(UpdateStats)]
    of_loss = declared[: declared.index("grad_norm")]
    if odd := sorted(set(parts).symmetric_difference(of_loss)):
        here, there = ("Losses", "UpdateStats") if odd[0] in parts else ("UpdateStats", "Losses")
        files = {"Losses": "ppo/loss.py", "UpdateStats": "ppo/update.py"}
        raise ConfigError(
            f"{here} of {files[here]} has {odd[0]}, and {there} of {files[there]} has not: "
            "the same names are expected, in UpdateStats before grad_norm"
        )


# an environment may have switched gradients off
@torch.enable_grad()
def run_epochs(
    loss_fn: LossFn,
    batch: Batch,
    step: Callable[[Tensor], Tensor],
    coefs: Coefficients,
    config: Config,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Take the gradient steps of `ppo_update`, with the same arguments.

    Nothing here waits for a device, except once an epoch with `target_kl`.

    Returns:
        The first of `_COMPUTED`, up to `gradient_steps`, `[7]` float64.
    """
    loss_fn, take_step = timed("loss")(loss_fn), timed("backward")(step)
    # target_kl may end the update after any epoch, so none is prepared before the one before it
    one_by_one, kl = config.target_kl is not None, _COMPUTED.index("approx_kl")
    sums, count = [], 0
    for epochs in batch.stretches(config.update_epochs, one_by_one):
        parts, norms = [], []
        for rows in batch.minibatches(epochs, config.per_rank_batch_size):
            loss, of_rows = loss_fn(rows, coefs)
            norms.append(checked_norm(take_step(loss), step))
            parts.append(of_rows)
        summed = torch.stack(parts).double().sum(0)
        sums.append(torch.cat([summed, torch.stack(norms).to(summed).sum().view(1)]))
        count += len(norms)
        if one_by_one and _is_too_far(sums[-1][kl] / len(norms), config, ranks):
            break
    return torch.cat([torch.stack(sums).sum(0) / count, sums[0].new_full((1,), count)])


def _is_too_far(approx_kl: Tensor, config: Config, ranks: Ranks) -> bool:
    """Return True if the policy has moved further than `target_kl` allows in one update."""
    assert config.target_kl is not None
    # the mean over ranks, so that all stop together: gradients are averaged over all of them
    return bool(ranks.gather(approx_kl).mean() > _KL_MARGIN * config.target_kl)


def _value_sums(batch: Batch) -> Tensor:
    """Compute the sums of UpdateStats over this rank's share of the rows, `[5]` float64."""
    # of shared rows each rank takes every W-th, so that each row is counted once
    share = slice(batch.share, None, batch.num_shares)
    columns = (batch.rows.weights, batch.rows.returns, batch.rows.values)
    weights, returns, values = (column[share].double() for column in columns)
    error = returns - values
    of_returns = [weights @ returns, weights @ returns.square()]
    return torch.stack([weights.sum(), *of_returns, weights @ error, weights @ error.square()])
