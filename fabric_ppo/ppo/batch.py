"""From a rollout to minibatches: advantages, their normalisation, flat rows, each rank's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import NO_MEMORY, Agent
from fabric_ppo.config import Config
from fabric_ppo.ppo import advantages as estimator
from fabric_ppo.ppo.returned import checked_advantages
from fabric_ppo.process.group import Ranks
from fabric_ppo.process.packets import move_together
from fabric_ppo.process.profile import timed
from fabric_ppo.rollouts.buffer import Rollout
from fabric_ppo.seeding import minibatch_order

_BYTES_AT_A_TIME = 2**24
"""Bytes of rows that are permuted at once (see `Batch.stretches`)."""


class Rows(NamedTuple):
    """Transitions, one a row, `[b, ...]`, in canonical order: by t, then by global environment id.

    Rows of a recurrent agent are sequences of L rows, ordered by t of their first row, then by
    environment.

    Attributes:
        obs: raw observations, as the environment returned them.
        actions: as drawn.
        log_probs, values: of the policy that collected.
        advantages, returns: from GAE.
        weights: relative weights in a mean: 0 for a row that is no transition, 1 on average over
            all ranks. In a minibatch they include the division by its size (`Batch.minibatches`).
        sequences: `[b / L, ...]`, as `Memory.along` takes them; empty if the agent is not
            recurrent.
    """

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor
    sequences: Tensor = NO_MEMORY


@dataclass(frozen=True)
class Batch:
    """The rows of one update, and this rank's share of them.

    Attributes:
        rows: rows that this rank holds: its own, or with shared data those of all ranks.
        share: index of this rank's part of every minibatch, below `num_shares`.
        num_shares: number of parts; 1 if each rank trains on its own rows.
        seed, update: determine the order of the rows in each epoch.
        sequence_length: L, number of consecutive rows that always stay together.
        rows_per_rank: number of rows of each rank, if ranks hold unequal numbers of their own; empty
            if all hold the same number.
    """

    rows: Rows
    share: int
    num_shares: int
    seed: int
    update: int
    sequence_length: int = 1
    rows_per_rank: tuple[int, ...] = ()

    def num_minibatches(self, per_rank_batch_size: int) -> int:
        """Return the number of minibatches of an epoch: `ceil(rows / (num_shares * per_rank_batch_size))`."""
        length = self.sequence_length
        # from the largest rank's rows, which all know: ranks with different numbers of gradient
        # steps would wait for each other for ever
        most = max(self.rows_per_rank, default=len(self.rows.weights)) // length
        return -(-most // (self.num_shares * max(per_rank_batch_size // length, 1)))

    @timed("minibatches")
    def minibatches(self, epochs: range, per_rank_batch_size: int) -> Iterator[Rows]:
        """Return this rank's part of each minibatch of some epochs.

        In each epoch the rows (or sequences) are permuted and cut into chunks, the minibatches,
        whose sizes differ by at most one. Each chunk is split over the shares in the same way. If
        one minibatch holds all rows, they stay in order. Weights are scaled by
        `num_shares / chunk size`. So the mean over ranks of a dot product with them is the mean
        over the chunk, however it was split.

        Args:
            epochs: numbers of the epochs.
            per_rank_batch_size: rows of a minibatch on each rank, a multiple of L.
        """
        length = self.sequence_length
        total = len(self.rows.weights) // length
        num_chunks = self.num_minibatches(per_rank_batch_size)
        parts, scales = [], []
        for chunk in range(num_chunks):
            # equal chunks, not full ones and a rest: a small last minibatch has a noisy gradient
            start, stop = cut(total, chunk, num_chunks)
            first, last = cut(stop - start, self.share, self.num_shares)
            parts.append(slice(start + first, start + last))
            # DDP averages over R ranks: weights of R / (rows of the chunk on all ranks) make that
            # average the mean over the chunk
            elsewhere = (cut(rows // length, chunk, num_chunks) for rows in self.rows_per_rank)
            in_chunk = sum(map(size_of, elsewhere)) or stop - start
            num_ranks = len(self.rows_per_rank) or self.num_shares
            scales.append(num_ranks / max(in_chunk * length, 1))
        sizes = [(part.stop - part.start) * length for part in parts]
        large = None
        # the gradient of a single minibatch is a sum over all rows, whatever their order
        if num_chunks == self.num_shares == 1:
            rows = Rows(*(torch.cat([column] * len(epochs)) for column in self.rows))
        else:
            orders = [minibatch_order(self.seed, self.update, epoch, total) for epoch in epochs]
            # all ranks draw the same permutation, and each takes its own parts of it
            if self.num_shares > 1:
                orders = [order[part] for order in orders for part in parts]
            (index,) = move_together([torch.from_numpy(np.concatenate(orders))], self.rows.obs.device)
            large = self._large_obs
            # images are permuted minibatch by minibatch: all of them at once would not stay in the cache
            rows = take(self.rows if large is None else self.rows._replace(obs=large.flatten(1)[:, :0]), index, length)
        scale = torch.from_numpy(np.tile(np.repeat(scales, sizes), len(epochs))).to(rows.weights.dtype)
        rows = rows._replace(weights=rows.weights * move_together([scale], rows.weights.device)[0])
        minibatches = _split(rows, sizes * len(epochs), length)
        return minibatches if large is None else _with_obs(minibatches, large, index.split(sizes * len(epochs)))

    @property
    def _large_obs(self) -> Tensor | None:
        """Observations, if they are large and of single rows; else None."""
        is_large = self.sequence_length == 1 and self.rows.obs.nbytes > _BYTES_AT_A_TIME * self.num_shares
        return self.rows.obs if is_large else None

    def stretches(self, num_epochs: int, one_by_one: bool) -> list[range]:
        """Split an update's epochs into groups of about 16 MB, whose rows are permuted at once.

        Args:
            num_epochs: number of epochs.
            one_by_one: put each epoch into a group of its own.
        """
        epoch_bytes = sum(column.nbytes for column in self.rows) // self.num_shares
        step = 1 if one_by_one else max(1, _BYTES_AT_A_TIME // max(epoch_bytes, 1))
        return [range(first, min(first + step, num_epochs)) for first in range(0, num_epochs, step)]


def _split(rows: Rows, sizes: list[int], sequence_length: int) -> Iterator[Rows]:
    """Cut rows into parts of `sizes`, multiples of the sequence length; they are views."""
    sequences = [NO_MEMORY] * len(sizes)
    if rows.sequences.shape[1]:
        sequences = list(rows.sequences.split([size // sequence_length for size in sizes]))
    return map(Rows, *(column.split(sizes) for column in rows[:-1]), sequences)


def _with_obs(minibatches: Iterator[Rows], obs: Tensor, parts: Sequence[Tensor]) -> Iterator[Rows]:
    """Yield the minibatches with their observations at `parts`, `[b]` each, selected one by one."""
    select = timed("minibatches")(obs.index_select)
    return (rows._replace(obs=select(0, part)) for rows, part in zip(minibatches, parts, strict=True))


def take(rows: Rows, index: Tensor, sequence_length: int) -> Rows:
    """Return some sequences of `rows`, or single rows where the length is 1.

    Args:
        rows: the rows to select from.
        index: `[n]` int64 on the CPU, the sequences' numbers.
        sequence_length: L, rows of a sequence.
    """
    index = index.to(rows.weights.device)
    sequences = rows.sequences.index_select(0, index) if rows.sequences.shape[1] else NO_MEMORY
    if sequence_length > 1:  # sequence i is rows i * L to i * L + L - 1
        within = torch.arange(sequence_length, device=index.device)
        index = (index.unsqueeze(-1) * sequence_length + within).flatten()
    # PyTorch's index_select takes no vectors of uint16, uint32 or uint64, which observations can be
    columns = (column[index] if column.ndim == 1 else column.index_select(0, index) for column in rows[:-1])
    return Rows(*columns)._replace(sequences=sequences)


def blank_rows(agent: Agent, count: int) -> Rows:
    """Return `count` rows of zeros with the shapes, types and device of an agent's transitions."""
    space, distribution = agent.spec.observation, agent.distribution
    obs = torch.from_numpy(np.zeros((count, *space.shape), space.dtype))
    actions = torch.zeros(count, *distribution.action_shape, dtype=distribution.action_dtype)
    shaped = {"obs": obs, "actions": actions}  # of the other columns a row has one number
    number = torch.zeros(count, dtype=agent.dtype)
    columns = {name: shaped.get(name, number) for name in Rows._fields[:-1]}
    return Rows(**{name: column.to(agent.device, copy=True) for name, column in columns.items()})


def cut(total: int, index: int, parts: int) -> tuple[int, int]:
    """Return start and stop of slice `index` when `total` rows are cut into `parts` slices.

    Sizes of slices differ by at most one.
    """
    return total * index // parts, total * (index + 1) // parts


def size_of(bounds: tuple[int, int]) -> int:
    """Return the number of rows of a slice."""
    return bounds[1] - bounds[0]


@timed("batch")
def make_batch(rollout: Rollout, config: Config, ranks: Ranks, update: int, device: torch.device) -> Batch:
    """Compute advantages and value targets of a rollout, and return flat rows on `device`.

    With `--share-data` the rows of all ranks are gathered (one collective) and every rank trains on
    a part of each minibatch; otherwise each rank trains on its own rows.

    Args:
        rollout: rollout of this rank, `[T, N, ...]`.
        config: hyperparameters.
        ranks: the ranks with rollouts.
        update: number of the update, which determines the order of the rows.
        device: device of the rows.

    Raises:
        ConfigError: `gae` has not returned advantages and returns.
        TrainingError: these are not finite, although rewards and values are.
    """
    estimated = estimator.gae(
        rollout.rewards.to(rollout.values.dtype),
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        config.gamma,
        config.gae_lambda,
    )
    advantages, returns = checked_advantages(estimated, rollout, update)
    weights, length = rollout.valid.to(rollout.values.dtype), config.effective_sequence_length
    computed = {"advantages": advantages, "returns": returns, "weights": weights}
    # other columns of Rows are those of the rollout with their names
    columns = [computed[name] if name in computed else getattr(rollout, name) for name in Rows._fields[:-1]]
    sequences = [_sequences(rollout, length)] if rollout.memory.shape[-1] else []
    shared = config.share_data and ranks.size > 1
    if shared:
        gathered = ranks.gather_all(move_together([*columns, *sequences], device))
        # [W, T, N, ...] -> [T, W * N, ...]: by t, then by global environment id
        of_all = [each.swapaxes(0, 1).flatten(1, 2) for each in gathered]
        columns, sequences = of_all[: len(columns)], of_all[len(columns) :]
    # the decoupled objective multiplies the surrogate by the importance (arXiv 2110.00641,
    # equation 5). It is 1 unless rollouts overlap updates, where one player has all rows and
    # nothing is gathered
    importance = [] if shared else [_flat(rollout.importance, length)]
    flat = [*(_flat(each, length) for each in columns), *(each.flatten(0, 1) for each in sequences)]
    moved = move_together([*flat, *importance], device)
    rows = Rows(*moved[: len(flat)])
    # gathered rows are those of all ranks already
    rows = _normalize(rows, config.normalize_advantages, None if shared else ranks)
    if not shared:
        # it is positive, so multiplying the advantage is the same
        rows = rows._replace(advantages=rows.advantages * moved[-1])
    share, num_shares = (ranks.rank, ranks.size) if shared else (0, 1)
    return Batch(rows, share, num_shares, config.seed, update, length)


def _flat(column: Tensor, length: int) -> Tensor:
    """Flatten `[T, N, ...]` to `[T * N, ...]`, in the order of `Rows`."""
    if length == 1:
        return column.flatten(0, 1)
    # [T, N, ...] -> [T / L, L, N, ...] -> [T / L, N, L, ...]: the steps of a sequence side by side
    return column.view(-1, length, *column.shape[1:]).swapaxes(1, 2).flatten(0, 2)


def _sequences(rollout: Rollout, length: int) -> Tensor:
    """Return the argument `sequences` of `Memory.along`, `[T / L, N, memory_size + L]`."""
    begins = rollout.begins.view(-1, length, rollout.begins.shape[1]).swapaxes(1, 2)
    begins = begins.to(rollout.memory.dtype)
    # where an episode begins with a sequence's first step, the memory before it is zeros already
    begins[..., 0] = 0
    return torch.cat([rollout.memory[::length], begins], dim=-1)


def _normalize(rows: Rows, normalize_advantages: bool, ranks: Ranks | None) -> Rows:
    """Scale weights to mean 1, and advantages to mean 0 and population standard deviation 1.

    Both are over the transitions of all `ranks`; None: of these rows alone.
    """
    # sums, unlike means, can be added up over ranks; in float64, so that their order hardly matters
    weights, advantages = rows.weights.double(), rows.advantages.double()
    sums = [torch.ones_like(weights).sum(), weights.sum()]
    moments = torch.stack([*sums, weights @ advantages, weights @ advantages.square()])
    if ranks is not None and ranks.size > 1:
        moments = ranks.gather(moments).sum(0)
    count, valid, first, second = moments.unbind()
    rows = rows._replace(weights=(weights * (count / valid)).to(rows.weights.dtype))
    if not normalize_advantages:
        return rows
    mean = first / valid
    # Var[A] = E[A^2] - E[A]^2, which rounding can make negative
    std = (second / valid - mean.square()).clamp(min=0).sqrt()
    normalized = (advantages - mean) / (std + 1e-8)
    return rows._replace(advantages=normalized.to(rows.advantages.dtype))
