"""Merging of the numbers of an update over all ranks, in one collective."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.group import Ranks
from fabric_ppo.process.metrics import Metrics, merge_own, metric
from fabric_ppo.rollouts.buffer import EnvSnapshot, Episode, Rollout, RolloutStats
from fabric_ppo.rollouts.info_totals import InfoTotals
from fabric_ppo.run.result import RETURN_WINDOW, WINDOW_RETURN

_OTHERS = ("Episode/", "Eval/", "Test/")
"""Beginnings of the names of scalars that are not logged in each update."""


@dataclass(frozen=True)
class Requests(Metrics):
    """Requests to stop, from a signal or a callback, and to set attributes of environments.

    Each is 0 or 1; one rank with a 1 is enough.
    """

    signal: float = metric("max")
    callback: float = metric("max")
    attributes: float = metric("max")


@dataclass(frozen=True)
class UpdateResult:
    """Result of an update, merged over all ranks and the same on each.

    Attributes:
        rollout, update: numbers of the rollout and of the update.
        episodes: episodes that ended, the last RETURN_WINDOW of each rank, ordered by (t, env).
        moments: sums for `Agent.update_statistics`, `[n]` float64.
        snapshot: the environments of all ranks.
        requests: requests of any rank.
        info: numbers of `info`, over all episodes that ended.
    """

    rollout: RolloutStats
    update: UpdateStats
    episodes: list[Episode]
    moments: Tensor
    snapshot: EnvSnapshot
    requests: Requests
    info: InfoTotals

    @property
    def approx_kl(self) -> float:
        """Approximate KL divergence of the update, mean over minibatches and ranks."""
        return self.update.approx_kl

    def tagged(self) -> dict[str, float]:
        """Return the scalars to log, tag -> value."""
        numbers = self.update.tagged() | self.rollout.tagged()
        return numbers | self.info.tagged("Episode", self.rollout.num_episodes)


def merge_update(rollout: Rollout, stats: UpdateStats, requests: Requests, ranks: Ranks) -> UpdateResult:
    """Merge an update over all ranks, in one collective.

    Environments' states need two more, and so do the user's own metrics.

    Args:
        rollout, stats, requests: numbers of this rank.
        ranks: the ranks with rollouts.
    """
    # every rank sends the same number of rows, whatever number of episodes ended: NaN for none
    episodes = _episode_rows(rollout.episodes[-RETURN_WINDOW:], len(rollout.info.keys))
    has_own = torch.tensor([float(bool(stats.own))], dtype=torch.float64)
    numbers = [rollout.stats.to_tensor(), stats.to_tensor(), requests.to_tensor(), has_own]
    more = [*numbers, episodes, rollout.moments, rollout.info.to_tensor()]
    snapshot, gathered = gather_snapshot(rollout.snapshot, more, ranks)
    of_rollouts, of_updates, of_requests, have_own, of_episodes, moments, of_info = gathered
    return UpdateResult(
        rollout=RolloutStats.merge(of_rollouts),
        update=merge_stats(stats, of_updates, bool(have_own.any()), ranks),
        episodes=_merge_episodes(of_episodes),
        moments=moments.sum(0),
        snapshot=snapshot,
        requests=Requests.merge(of_requests),
        info=rollout.info.merged(of_info),
    )


def require_own_names(result: UpdateResult, more: Sequence[Metrics]) -> None:
    """Check that the user's own metrics have names that the run does not log itself.

    Args:
        result: result of an update.
        more: further numbers that are logged.

    Raises:
        ConfigError: a name is taken; the same on all ranks.
    """
    taken = {"Info/learning_rate", "Time/step_per_second", WINDOW_RETURN}.union(
        *(each.names() for each in (result.rollout, *more))
    )
    for tag in result.update.own:
        if tag in taken or tag.startswith(_OTHERS):
            raise ConfigError(f"the metric {tag}: another name is expected, this one is taken")


def merge_stats(stats: UpdateStats, of_ranks: Tensor, have_own: bool, ranks: Ranks) -> UpdateStats:
    """Merge the numbers of an update, with the user's own metrics (two more collectives).

    Args:
        stats: numbers of this rank.
        of_ranks: numbers of all ranks, as `UpdateStats.merge` takes them.
        have_own: true if any rank has metrics of the user's own; the same on all ranks.
        ranks: the ranks that train.
    """
    merged = UpdateStats.merge(of_ranks)
    if not have_own:
        return merged
    texts = _gather_bytes([json.dumps(dict(stats.own)).encode()], ranks)
    return replace(merged, own=merge_own(json.loads(text) for (text,) in texts))


def _episode_rows(episodes: list[Episode], num_info: int) -> Tensor:
    """Return episodes as `[RETURN_WINDOW, 4 + num_info]` float64; rows without one are NaN."""
    rows = torch.full((RETURN_WINDOW, 4 + num_info), torch.nan, dtype=torch.float64)
    nothing = (None,) * num_info
    numbers = [(each.t, each.env, each.ret, each.length, *(each.info or nothing)) for each in episodes]
    if numbers:
        filled = [[math.nan if number is None else number for number in row] for row in numbers]
        rows[: len(filled)] = torch.tensor(filled, dtype=torch.float64)
    return rows


def _merge_episodes(of_ranks: Tensor) -> list[Episode]:
    """Return the episodes in what `_episode_rows` gave on each rank, `[W, ...]`, in order."""
    rows = of_ranks.flatten(0, 1)
    rows = rows[~rows[:, 0].isnan()]
    return sorted(
        Episode(int(t), int(env), ret, int(length), _known(info)) for t, env, ret, length, *info in rows.tolist()
    )


def _known(info: list[float]) -> tuple[float | None, ...]:
    """Return numbers of `info`, None for NaN; nothing where all are."""
    known = tuple(None if math.isnan(number) else number for number in info)
    return () if set(known) <= {None} else known


def gather_snapshot(snapshot: EnvSnapshot, more: Sequence[Tensor], ranks: Ranks) -> tuple[EnvSnapshot, list[Tensor]]:
    """Gather the snapshots of all ranks as one, and the tensors `more` of each rank.

    Returns:
        The snapshot, and each of `more` as `[W, ...]` on the CPU.
    """
    by_step = (snapshot.actions, snapshot.ended)
    by_env = (snapshot.obs, snapshot.returns, snapshot.lengths, snapshot.discounted, snapshot.memory)
    parts = [torch.from_numpy(np.ascontiguousarray(each)) for each in (*by_step, *by_env)]
    has_states = torch.tensor(bool(snapshot.states))
    *gathered, have_states = ranks.gather_all([*parts, *more, has_states])
    of_ranks = [part.cpu().numpy() for part in gathered[: len(parts)]]
    # [W, T, N, ...] -> [T, W * N, ...] and [W, N, ...] -> [W * N, ...]: by global environment id
    actions, ended = (x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:]) for x in of_ranks[:2])
    flat = (x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in of_ranks[2:])
    obs, returns, lengths, discounted, memory = flat
    whole = EnvSnapshot(actions, ended, obs, returns, lengths, discounted, memory)
    # states have different sizes, which takes two more collectives; all ranks must agree on that
    if have_states.all():
        whole = replace(whole, states=list(itertools.chain(*_gather_bytes(snapshot.states, ranks))))
    return whole, [other.cpu() for other in gathered[len(parts) :]]


def _gather_bytes(texts: Sequence[bytes], ranks: Ranks) -> list[list[bytes]]:
    """Gather bytes of all ranks in order of rank; each rank has the same number of them."""
    sizes = ranks.gather(torch.tensor([len(text) for text in texts])).tolist()
    own = b"".join(texts).ljust(max(sum(row) for row in sizes) or 1)
    gathered = ranks.gather(torch.frombuffer(bytearray(own), dtype=torch.uint8)).tolist()
    all_texts = []
    for row, each in zip(sizes, gathered, strict=True):
        ends = np.cumsum(row).tolist()
        all_texts.append([bytes(each[i:j]) for i, j in zip([0, *ends], ends, strict=False)])
    return all_texts
