"""What the episodes in progress can be rebuilt from: their numbers, which give their seeds, and their actions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LOG_BYTES = 64 * 2**20
"""Memory for actions: 16 million steps each of four environments with discrete actions. An episode that outgrows it
cannot be rebuilt, and starts anew when its run is resumed."""
_CHUNK_BYTES = 2**16
"""Smaller pieces are put together: each costs some hundred bytes of its own, and there could be millions."""


@dataclass(frozen=True)
class Trail:
    """What a rollout leaves behind of its N environments, copied out of the rollout's memory.

    Attributes:
        actions: `[T, N, ...]` as drawn, in the smallest dtype that holds them.
        ended: `[T, N]`, where an episode ended.
        obs: `[N, ...]`, the latest observation.
        returns, lengths, discounted: `[N]`, of the episodes in progress; discounted returns where rewards are scaled.
        memory: `[N, memory_size]`, what a recurrent agent remembers of them.
        states: what environments that offer `get_state` gave; empty where they do not.
    """

    actions: Array
    ended: Array
    obs: Array
    returns: Array
    lengths: Array
    discounted: Array
    memory: Array
    states: Sequence[bytes] = ()

    @classmethod
    def of_ranks(cls, actions: Array, ended: Array, *by_env: Array) -> Trail:
        """From what the ranks sent, `[W, T, N, ...]` and `[W, N, ...]`, environments in order of global id."""
        actions, ended = (x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:]) for x in (actions, ended))
        flat = (x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in by_env)
        obs, returns, lengths, discounted, memory = flat
        return cls(actions, ended, obs, returns, lengths, discounted, memory)


@dataclass(frozen=True)
class PastEpisode:
    """An episode in progress, to be brought back to where it was.

    Attributes:
        number: which of its environment's episodes it is; its seed follows.
        actions: `[steps, ...]` since its reset, as the environment takes them; None where they were not kept.
        obs: where it was.
        ret: its return until there, NaN where it is not known.
        length: its steps until there.
        discounted: its discounted return until there.
        memory: `[memory_size]`, what a recurrent agent remembers of it.
        state: from the environment's own `get_state`; empty for none.
    """

    number: int
    actions: Array | None
    obs: Array
    ret: float
    length: int
    discounted: float = 0.0
    memory: Array = field(default_factory=lambda: np.zeros(0))
    state: bytes = b""


@dataclass(frozen=True)
class LogView:
    """An ActionLog as it was at one moment.

    Attributes:
        numbers: `[N]`, which of its episodes each environment is in.
        lengths: `[N]`, steps since its reset; -1 where the log does not reach back so far.
    """

    numbers: Array
    lengths: Array
    _chunks: tuple[Array, ...]

    def actions(self) -> Array:
        """`[S, N, ...]`, the last S steps, S the length of the longest episode in progress."""
        kept = np.concatenate(self._chunks)
        return kept[len(kept) - max(int(self.lengths.max()), 0) :]

    def of(self, env: int) -> Array | None:
        """`[steps, ...]`, the actions of one environment's episode; None where the log does not reach back so far."""
        length, kept = int(self.lengths[env]), self.actions()
        return None if length < 0 else kept[len(kept) - length :, env]


class ActionLog:
    """The actions of N environments since their resets, in bounded memory.

    Attributes:
        numbers: `[N]`, which of its episodes each environment is in.
    """

    def __init__(self, numbers: Array, lengths: Array, actions: Array, limit: int = LOG_BYTES) -> None:
        """Begin with episodes in progress.

        Args:
            numbers, lengths: see `LogView`.
            actions: `[S, N, ...]` as in `LogView.actions`; its dtype is the log's.
            limit: bytes.
        """
        self.numbers = numbers.astype(np.int64)
        self._limit, self._most_merged = limit, min(_CHUNK_BYTES, limit // 16) // 2
        self._steps = len(actions)
        self._starts = np.where(lengths < 0, -1, self._steps - lengths)
        self._oldest = 0
        self._chunks: deque[Array] = deque([actions])
        self._nothing = actions[:0]
        self._bytes = actions.nbytes

    @classmethod
    def empty(cls, num_envs: int, action_shape: tuple[int, ...], dtype: Any, limit: int = LOG_BYTES) -> ActionLog:
        """The log of environments that have just been reset for the first time."""
        zeros = np.zeros(num_envs, np.int64)
        return cls(zeros, zeros, np.zeros((0, num_envs, *action_shape), dtype), limit)

    @classmethod
    def of_episodes(cls, numbers: Sequence[int], actions: Sequence[Array]) -> ActionLog:
        """From each environment's own actions since its reset, `[steps, ...]`."""
        lengths = np.array([len(each) for each in actions])
        together = np.zeros((lengths.max(), len(actions), *actions[0].shape[1:]), actions[0].dtype)
        for env, each in enumerate(actions):
            together[len(together) - len(each) :, env] = each
        return cls(np.array(numbers), lengths, together)

    def append(self, actions: Array, ended: Array) -> None:
        """T more steps: actions `[T, N, ...]`, and where an episode ended, `[T, N]`. May keep `actions`."""
        steps = len(actions)
        self._bytes += actions.nbytes
        while self._chunks and self._chunks[-1].nbytes <= actions.nbytes <= self._most_merged:
            actions = np.concatenate([self._chunks.pop(), actions])  # as in a binary counter: each byte moves seldom
        self._chunks.append(actions)
        has_ended = ended.any(0)
        last_end = steps - 1 - ended[::-1].argmax(0)
        self.numbers = self.numbers + ended.sum(0)
        self._starts = np.where(has_ended, self._steps + last_end + 1, self._starts)
        self._steps += steps
        self._forget()

    def _forget(self) -> None:
        """Drop what belongs to no episode in progress, and what is beyond the limit."""
        first_needed = self._starts[self._starts >= self._oldest].min(initial=self._steps)
        while self._chunks and (self._oldest + len(self._chunks[0]) <= first_needed or self._bytes > self._limit):
            dropped = self._chunks.popleft()
            self._oldest += len(dropped)
            self._bytes -= dropped.nbytes

    def view(self) -> LogView:
        """The log as it is now; it does not change when the log goes on."""
        lengths = np.where(self._starts >= self._oldest, self._steps - self._starts, -1)
        return LogView(self.numbers, lengths, (self._nothing, *self._chunks))
