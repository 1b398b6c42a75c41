"""Demonstrations as rows to train on: their returns, running statistics and minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.agents.agent import NO_MEMORY, Agent
from fabric_ppo.envs.actions import action_converter
from fabric_ppo.ppo.batch import cut
from fabric_ppo.rollouts.demonstrations import Demonstrations

ROWS_AT_ONCE = 4096
"""Rows of a pass without gradient."""

Indices = NDArray[np.int64]


class Minibatch(NamedTuple):
    """Rows of a forward pass.

    Attributes:
        rows: `[n, L]`, numbers of the rows: n single rows, or n whole episodes of a recurrent agent.
            Shorter episodes are filled up with their final observation.
        obs, actions: `[n * L, ...]`.
        weights: `[n * L]`, 0 for final observations, equal for the others; their sum is 1.
        sequences: as `Memory.along` takes them.
    """

    rows: Tensor
    obs: Tensor
    actions: Tensor
    weights: Tensor
    sequences: Tensor


@dataclass(frozen=True)
class Episodes:
    """E episodes as an agent trains on them: T rows each, and one with the final observation.

    Attributes:
        obs, actions: `[R, ...]`, raw observations and stored actions; R is S + E.
        returns: `[R]`, discounted sums of the demonstrated rewards from a row on.
        discounts: `[R]`, factors of the final observation's value in the row's return, 0 where the
            episode terminated.
        first, last: `[E]`, each episode's first row, and that of its final observation.
        memory_size: of the agent.
    """

    obs: Tensor
    actions: Tensor
    returns: Tensor
    discounts: Tensor
    first: Indices
    last: Indices
    memory_size: int

    def units(self, numbers: Indices) -> Indices:
        """Return the units that are permuted: rows of some episodes, or for a recurrent agent episodes."""
        if self.memory_size:
            return numbers
        rows = [np.arange(first, last) for first, last in zip(self.first[numbers], self.last[numbers], strict=True)]
        return np.concatenate([np.arange(0), *rows])

    def minibatches(self, units: Indices, size: int) -> Iterator[Minibatch]:
        """Cut units into minibatches of about `size` rows, whose numbers of units differ by at most one."""
        rows = (self.last - self.first)[units].sum() if self.memory_size else len(units)
        count = min(-(-int(rows) // size), len(units))
        for chunk in range(count):
            start, stop = cut(len(units), chunk, count)
            yield (self._whole if self.memory_size else self._single)(units[start:stop])

    def _single(self, units: Indices) -> Minibatch:
        rows = torch.from_numpy(units)
        weights = torch.full((len(units),), 1 / len(units), dtype=self.returns.dtype)
        return Minibatch(rows[:, None], self.obs[rows], self.actions[rows], weights, NO_MEMORY)

    def _whole(self, units: Indices) -> Minibatch:
        first, last = (torch.from_numpy(each[units])[:, None] for each in (self.first, self.last))
        rows = torch.minimum(first + torch.arange(int((last - first).max()) + 1), last)
        weights = (rows < last).flatten().to(self.returns.dtype)
        # each begins with a memory of zeros, and no other one begins within it
        sequences = torch.zeros(len(units), self.memory_size + rows.shape[1], dtype=self.returns.dtype)
        flat = rows.flatten()
        return Minibatch(rows, self.obs[flat], self.actions[flat], weights / weights.sum(), sequences)


def make_episodes(demonstrations: Demonstrations, agent: Agent, rewards: NDArray[np.float64], gamma: float) -> Episodes:
    """Arrange demonstrations for an agent, with the `rewards [S]` from which it learns."""
    starts = np.flatnonzero(demonstrations.episode_starts)
    ends = np.append(starts[1:], len(rewards))
    # before an episode there is a final observation of each one before it
    before = np.arange(len(starts))
    places = np.arange(len(rewards)) + np.cumsum(demonstrations.episode_starts) - 1
    first, last, total = starts + before, ends + before, len(rewards) + len(starts)
    obs = np.empty((total, *demonstrations.obs.shape[1:]), demonstrations.obs.dtype)
    obs[places], obs[last] = demonstrations.obs, demonstrations.final_obs
    stored = action_converter(agent.spec.action).stored(demonstrations.actions)
    actions = np.empty((total, *stored.shape[1:]), stored.dtype)
    # none was taken after the last one: any that can be taken keeps the place
    actions[places], actions[last] = stored, stored[ends - 1]
    columns = np.zeros((2, total))
    columns[:, places] = discounted_returns(rewards, demonstrations.terminated, demonstrations.truncated, gamma)
    returns, discounts = torch.from_numpy(columns).to(agent.dtype)
    kept = torch.from_numpy(actions).to(agent.distribution.action_dtype)
    return Episodes(torch.from_numpy(obs), kept, returns, discounts, first, last, agent.memory_size)


def discounted_returns(
    rewards: NDArray[np.float64], terminated: NDArray[np.bool_], truncated: NDArray[np.bool_], gamma: float
) -> NDArray[np.float64]:
    """Compute the returns of demonstrated rewards, and the discounts of the final observations' values.

    A truncated episode of T steps would have gone on. As in PPO the value of its final observation
    stands for the rest: the whole return of row t is `R[t] + discount[t] * V(final)`, where

        R[t] = r[t] + gamma * R[t + 1],    discount[t] = gamma^(T - t)

    The discount is 0 where the episode terminated.

    Args:
        rewards, terminated, truncated: `[S]`, of whole episodes.
        gamma: discount factor.

    Returns:
        R and the discounts, `[2, S]`.
    """
    columns = np.zeros((2, len(rewards)))
    after = np.zeros(2)
    for row in range(len(rewards) - 1, -1, -1):
        if terminated[row] or truncated[row]:
            after = np.array([0.0, not terminated[row]])
        after = gamma * after
        after[0] += rewards[row]
        columns[:, row] = after
    return columns


def take_statistics(agent: Agent, demonstrations: Demonstrations, numbers: Indices) -> NDArray[np.float64]:
    """Add some episodes to the agent's running statistics; return the rewards to learn from, `[S]`.

    As in a rollout, rewards of Atari games are signs, and they are divided if the agent scales rewards.
    """
    episode = np.cumsum(demonstrations.episode_starts) - 1
    taken = torch.from_numpy(np.flatnonzero(np.isin(episode, numbers)))
    rewards = torch.from_numpy(np.sign(demonstrations.rewards) if agent.spec.is_atari else demonstrations.rewards)
    sums = [torch.zeros(0, dtype=torch.float64)]
    if agent.obs_moments is not None:
        obs = torch.from_numpy(demonstrations.obs)
        parts = [agent.encoder.boxes(obs[rows], torch.float64) for rows in taken.split(ROWS_AT_ONCE)]
        sums.append(torch.stack([agent.obs_moments.sums(part) for part in parts]).sum(0))
    if agent.reward_scale is not None:
        ended = torch.from_numpy(demonstrations.terminated | demonstrations.truncated)
        so_far, _ = agent.reward_scale.discounted(rewards[:, None], ended[:, None], torch.zeros(1).double())
        sums.append(agent.reward_scale.sums(so_far[taken]))
    agent.update_statistics(torch.cat(sums))
    scaled = rewards if agent.reward_scale is None else agent.reward_scale(rewards)
    to_learn: NDArray[np.float64] = scaled.numpy()
    return to_learn
