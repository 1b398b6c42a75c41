"""Log from which episodes in progress are rebuilt: their numbers, hence seeds, and actions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fabric_ppo.envs.contract import Array

LOG_BYTES = 64 * 2**20
"""Memory for actions, in bytes: 16 million steps of four environments with few choices.

An episode that outgrows it cannot be rebuilt, and starts anew when its run is resumed.
"""

_CHUNK_BYTES = 2**16
"""Chunks below this size are merged: each costs some hundred bytes, and there could be millions."""


@dataclass(frozen=True)
class LogView:
    """An ActionLog as it was at one moment; it does not change when the log goes on.

    Attributes:
        numbers: `[N]`, which of its episodes each environment is in.
        lengths: `[N]`, steps since its reset; -1 where the log does not reach back so far.
    """

    numbers: Array
    lengths: Array
    _chunks: tuple[Array, ...]

    def actions(self) -> Array:
        """Return the last S steps, `[S, N, ...]`; the longest episode in progress has S."""
        kept = np.concatenate(self._chunks)
        return kept[len(kept) - max(int(self.lengths.max()), 0) :]

    def of(self, env: int) -> Array | None:
        """Return an environment's actions since its reset, `[steps, ...]`; None if not kept."""
        length, kept = int(self.lengths[env]), self.actions()
        return None if length < 0 else kept[len(kept) - length :, env]


class ActionLog:
    """The actions of N environments since their resets, in bounded memory.

    Attributes:
        numbers: `[N]`, which of its episodes each environment is in.
    """

    def __init__(self, numbers: Array, lengths: Array, actions: Array, limit: int = LOG_BYTES) -> None:
        """Start from episodes in progress.

        Args:
            numbers, lengths: see `LogView`.
            actions: `[S, N, ...]` as in `LogView.actions`; its dtype is the log's.
            limit: bytes of actions to keep at most.
        """
        self.numbers = numbers.astype(np.int64)
        self._limit, self._most_merged = limit, min(_CHUNK_BYTES, limit // 16) // 2
        self._steps = len(actions)
        # steps are counted from the log's beginning: each episode's first, and the oldest one kept
        self._starts = np.where(lengths < 0, -1, self._steps - lengths)
        self._oldest = 0
        self._chunks: deque[Array] = deque([actions])
        self._nothing = actions[:0]
        self._bytes = actions.nbytes

    @classmethod
    def empty(cls, num_envs: int, action_shape: tuple[int, ...], dtype: Any, limit: int = LOG_BYTES) -> ActionLog:
        """Return the log of environments that have just been reset for the first time."""
        zeros = np.zeros(num_envs, np.int64)
        return cls(zeros, zeros, np.zeros((0, num_envs, *action_shape), dtype), limit)

    @classmethod
    def of_episodes(cls, numbers: Sequence[int], actions: Sequence[Array]) -> ActionLog:
        """Return a log of N environments' actions, each one's since its reset, `[steps, ...]`."""
        lengths = np.array([len(each) for each in actions])
        # episodes that started at different times all end in the last row, which is the present
        aligned = np.zeros((lengths.max(), len(actions), *actions[0].shape[1:]), actions[0].dtype)
        for env, each in enumerate(actions):
            aligned[len(aligned) - len(each) :, env] = each
        return cls(np.array(numbers), lengths, aligned)

    def append(self, actions: Array, ended: Array) -> None:
        """Add T steps.

        Args:
            actions: `[T, N, ...]`; may be kept, so the caller must not write into it afterwards.
            ended: `[T, N]`, where an episode ended.
        """
        steps = len(actions)
        self._bytes += actions.nbytes
        while self._chunks and self._chunks[-1].nbytes <= actions.nbytes <= self._most_merged:
            # as digits carry in a binary counter: each byte is copied a logarithmic number of times
            actions = np.concatenate([self._chunks.pop(), actions])
        self._chunks.append(actions)
        # where an environment had an end, its episode in progress starts after the last of them
        has_ended = ended.any(0)
        last_end = steps - 1 - ended[::-1].argmax(0)
        self.numbers = self.numbers + ended.sum(0)
        # steps are counted from the log's beginning: each episode's first, and the oldest one kept
        self._starts = np.where(has_ended, self._steps + last_end + 1, self._starts)
        self._steps += steps
        self._forget()

    def _forget(self) -> None:
        """Drop chunks that belong to no episode in progress, and the oldest ones over the limit."""
        first_needed = self._starts[self._starts >= self._oldest].min(initial=self._steps)
        while self._chunks and (self._oldest + len(self._chunks[0]) <= first_needed or self._bytes > self._limit):
            dropped = self._chunks.popleft()
            self._oldest += len(dropped)
            self._bytes -= dropped.nbytes

    def view(self) -> LogView:
        """Return the log as it is at this moment."""
        lengths = np.where(self._starts >= self._oldest, self._steps - self._starts, -1)
        return LogView(self.numbers, lengths, (self._nothing, *self._chunks))
