"""From a rollout to minibatches: advantages, normalisation, flat rows, and who trains on which of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.advantages import gae
from fabric_ppo.agent import NO_MEMORY, Agent
from fabric_ppo.config import Config
from fabric_ppo.distributed import Ranks
from fabric_ppo.profile import timed
from fabric_ppo.rollout import Rollout
from fabric_ppo.seeding import minibatch_order

_BYTES_AT_A_TIME = 2**24


class Rows(NamedTuple):
    """Transitions, one a row, in canonical order: by t, then by global environment id.

    A recurrent agent's are sequences of L rows, one after the other, by t of their first row, then by environment.

    `weights` are relative: 0 for a row that is no transition, 1 on average over all ranks. In a minibatch they carry
    its normalisation too (see `Batch.minibatches`). `sequences [b / L, ...]` is what `Memory.along` takes, one entry a
    sequence; without entries where the agent is not recurrent.
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
    """What one update trains on, and this rank's share of it.

    Attributes:
        rows: those that this rank holds: its own, or with shared data everybody's.
        share: which of `num_shares` parts of every minibatch this rank trains on.
        num_shares: 1 where each rank trains on rows of its own.
        seed, update: name the order of the rows.
        together: L, rows that no permutation or cut separates.
        held: rows that each of the ranks holds, where they train on uneven parts; empty where all hold as many.
    """

    rows: Rows
    share: int
    num_shares: int
    seed: int
    update: int
    together: int = 1
    held: tuple[int, ...] = ()

    def num_minibatches(self, per_rank_batch_size: int) -> int:
        """Minibatches of an epoch, the same on every rank: `ceil(rows / (num_shares * per_rank_batch_size))`."""
        most = max(self.held, default=len(self.rows.weights)) // self.together
        return -(-most // (self.num_shares * max(per_rank_batch_size // self.together, 1)))

    @timed("minibatches")
    def minibatches(self, epochs: range, per_rank_batch_size: int) -> Minibatches:
        """This rank's part of each minibatch of some epochs.

        In each epoch the rows (or sequences) are permuted, cut into chunks whose sizes differ by at most one, and each
        chunk is split over the shares likewise; where that leaves all rows together they stay in order. Weights are
        scaled by `num_shares / chunk`: the mean over ranks of a dot product with them is the mean over the chunk,
        however the chunk was split.
        """
        together = self.together
        total = len(self.rows.weights) // together
        num_chunks = self.num_minibatches(per_rank_batch_size)
        parts, scales = [], []
        for chunk in range(num_chunks):
            start, stop = cut(total, chunk, num_chunks)
            first, last = cut(stop - start, self.share, self.num_shares)
            parts.append(slice(start + first, start + last))
            in_chunk = sum(size_of(cut(held // together, chunk, num_chunks)) for held in self.held) or stop - start
            scales.append((len(self.held) or self.num_shares) / max(in_chunk * together, 1))
        sizes = [(part.stop - part.start) * together for part in parts]
        if num_chunks == self.num_shares == 1:  # one sum of all, whatever their order
            rows = Rows(*(torch.cat([column] * len(epochs)) for column in self.rows))
        else:
            orders = [minibatch_order(self.seed, self.update, epoch, total) for epoch in epochs]
            if self.num_shares > 1:
                orders = [order[part] for order in orders for part in parts]
            rows = take(self.rows, torch.from_numpy(np.concatenate(orders)), together)
        scale = torch.from_numpy(np.tile(np.repeat(scales, sizes), len(epochs))).to(rows.weights)
        return Minibatches(rows._replace(weights=rows.weights * scale), sizes * len(epochs), together)

    def stretches(self, num_epochs: int, one_by_one: bool) -> list[range]:
        """Epochs, cut into stretches whose rows may well lie in memory together: as many at a time as take 16 MB."""
        epoch_bytes = sum(column.nbytes for column in self.rows) // self.num_shares
        step = 1 if one_by_one else max(1, _BYTES_AT_A_TIME // max(epoch_bytes, 1))
        return [range(first, min(first + step, num_epochs)) for first in range(0, num_epochs, step)]


class Minibatches:
    """Minibatches, in order.

    Attributes:
        rows: those of all of them, one minibatch after the other.
    """

    def __init__(self, rows: Rows, sizes: list[int], together: int = 1) -> None:
        """Cut `rows` into parts of `sizes`, multiples of `together`."""
        self.rows, self._sizes = rows, sizes
        self._sequences = [NO_MEMORY] * len(sizes)
        if rows.sequences.shape[1]:
            self._sequences = list(rows.sequences.split([size // together for size in sizes]))

    def __len__(self) -> int:
        """How many minibatches."""
        return len(self._sizes)

    def __iter__(self) -> Iterator[Rows]:
        """The minibatches; views of `rows`."""
        return map(Rows, *(column.split(self._sizes) for column in self.rows[:-1]), self._sequences)


def take(rows: Rows, index: Tensor, together: int) -> Rows:
    """The rows (with `together` > 1, the sequences of so many rows) of an index on the CPU."""
    index = index.to(rows.weights.device)
    sequences = rows.sequences.index_select(0, index) if rows.sequences.shape[1] else NO_MEMORY
    if together > 1:
        index = (index.unsqueeze(-1) * together + torch.arange(together, device=index.device)).flatten()
    return Rows(*(column.index_select(0, index) for column in rows[:-1]))._replace(sequences=sequences)


def blank_rows(agent: Agent, count: int) -> Rows:
    """Rows of the right shapes and types, and no transitions."""
    obs = torch.from_numpy(np.zeros((count, *agent.spec.observation.shape), agent.spec.observation.dtype))
    actions = torch.zeros(count, *agent.distribution.action_shape, dtype=agent.distribution.action_dtype)
    numbers = [torch.zeros(count, dtype=agent.dtype, device=agent.device) for _ in Rows._fields[2:-1]]
    return Rows(agent.prepare(obs.to(agent.device)), actions.to(agent.device), *numbers)


def cut(total: int, index: int, parts: int) -> tuple[int, int]:
    """Start and stop of one of `parts` slices of `total` rows, whose sizes differ by at most one."""
    return total * index // parts, total * (index + 1) // parts


def size_of(bounds: tuple[int, int]) -> int:
    """Number of rows of a slice."""
    return bounds[1] - bounds[0]


@timed("batch")
def make_batch(rollout: Rollout, config: Config, ranks: Ranks, update: int, device: torch.device) -> Batch:
    """Advantages and targets of a rollout, as flat rows on `device`.

    With `--share-data` the rows of all ranks are gathered (one collective) and every rank trains on a part of each
    minibatch; otherwise each rank trains on its own. Advantages are normalised, and then weighed by the rollout's
    importance, which is 1 but for the player of the overlapped architecture.
    """
    advantages, returns = gae(
        rollout.rewards.to(rollout.values.dtype),
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        config.gamma,
        config.gae_lambda,
    )
    weights, together = rollout.valid.to(rollout.values.dtype), config.rows_together
    columns = [rollout.obs, rollout.actions, rollout.log_probs, rollout.values, advantages, returns, weights]
    sequences = [_sequences(rollout, together)] if rollout.memory.shape[-1] else []
    shared = config.share_data and ranks.size > 1
    if shared:
        gathered = ranks.gather_all([each.to(device) for each in (*columns, *sequences)])
        # [W, T, N, ...] -> [T, W * N, ...]: by t, then by global environment id
        of_all = [each.swapaxes(0, 1).flatten(1, 2) for each in gathered]
        columns, sequences = of_all[: len(columns)], of_all[len(columns) :]
    rows = Rows(*(_flat(each, together).to(device) for each in columns))
    if sequences:
        rows = rows._replace(sequences=sequences[0].flatten(0, 1).to(device))
    rows = _normalize(rows, config.normalize_advantages, None if shared else ranks)
    if not shared:
        # the surrogate is linear in the advantage, so what the importance weighs it may weigh there
        importance = _flat(rollout.importance, together).to(device)
        rows = rows._replace(advantages=rows.advantages * importance)
    share, num_shares = (ranks.rank, ranks.size) if shared else (0, 1)
    return Batch(rows, share, num_shares, config.seed, update, together)


def _flat(column: Tensor, together: int) -> Tensor:
    """`[T, N, ...] -> [T * N, ...]`, in the order of `Rows`."""
    if together == 1:
        return column.flatten(0, 1)
    return column.view(-1, together, *column.shape[1:]).swapaxes(1, 2).flatten(0, 2)


def _sequences(rollout: Rollout, together: int) -> Tensor:
    """`Memory.along`'s `sequences`, `[T / L, N, memory_size + L]`."""
    begins = rollout.begins.view(-1, together, rollout.begins.shape[1]).swapaxes(1, 2).to(rollout.memory.dtype)
    begins[..., 0] = 0  # what a sequence begins with is forgotten already where an episode begins with it
    return torch.cat([rollout.memory[::together], begins], dim=-1)


def _normalize(rows: Rows, normalize_advantages: bool, ranks: Ranks | None) -> Rows:
    """Scale weights to mean 1, and advantages to mean 0 and population deviation 1, in float64 over all ranks."""
    weights, advantages = rows.weights.double(), rows.advantages.double()
    moments = torch.stack(
        [torch.ones_like(weights).sum(), weights.sum(), weights @ advantages, weights @ advantages.square()]
    )
    if ranks is not None and ranks.size > 1:
        moments = ranks.gather(moments).sum(0)
    count, valid, first, second = moments.unbind()
    rows = rows._replace(weights=(weights * (count / valid)).to(rows.weights.dtype))
    if not normalize_advantages:
        return rows
    mean = first / valid
    std = (second / valid - mean.square()).clamp(min=0).sqrt()
    return rows._replace(advantages=((advantages - mean) / (std + 1e-8)).to(rows.advantages.dtype))
