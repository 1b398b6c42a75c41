"""The memory of a rollout, and the rollout as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.envs.contract import Array, FinalObs, PastEpisode, VectorEnvs
from fabric_ppo.process.metrics import Metrics, metric
from fabric_ppo.rollouts.actor import MakeActor, make_plain_actor


@dataclass(frozen=True, order=True)
class Episode:
    """An episode that ended: at step `t` of its rollout, in global environment `env`."""

    t: int
    env: int
    ret: float
    length: int


@dataclass(frozen=True)
class RolloutStats(Metrics):
    """Numbers of a rollout.

    `env_restarts` are worker processes that had to be replaced since the run began; the sums are
    over the episodes that ended, undiscounted returns and lengths.
    """

    env_steps: float = metric("sum")
    seconds: float = metric("max", "Time/rollout_seconds")
    env_restarts: float = metric("sum", "Info/env_restarts")
    num_episodes: float = metric("sum")
    return_sum: float = metric("sum")
    length_sum: float = metric("sum")

    def tagged(self) -> dict[str, float]:
        """See `Metrics.tagged`; without an episode there is no mean."""
        values = super().tagged()
        if self.num_episodes > 0:
            values["Rewards/rew_avg"] = self.return_sum / self.num_episodes
            values["Game/ep_len_avg"] = self.length_sum / self.num_episodes
        return values


@dataclass(frozen=True)
class EnvSnapshot:
    """N environments at the end of a rollout, copied out of its memory.

    Attributes:
        actions: `[T, N, ...]` that led there, in the smallest dtype that holds them.
        ended: `[T, N]`, where an episode ended.
        obs: `[N, ...]`, the latest observation.
        returns, lengths, discounted: `[N]`, of the episodes in progress; discounted returns where
            rewards are scaled.
        memory: `[N, memory_size]`, what a recurrent agent remembers of them.
        states: from environments that offer `get_state`; empty where they do not.
    """

    actions: Array
    ended: Array
    obs: Array
    returns: Array
    lengths: Array
    discounted: Array
    memory: Array
    states: Sequence[bytes] = ()


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments.

    Attributes:
        obs: `[T, N, ...]`, raw, in the environment's dtype.
        actions: `[T, N, ...]` as drawn, before `spaces.ActionConverter`.
        log_probs, values: of the agent that acted (of a later one after `revalue`), `[T, N]`.
        importance: probability of the action under that agent over the one under the agent that
            acted, `[T, N]`.
        rewards: `[T, N]`, scaled where the agent does that; of Atari games their signs.
        terminated, truncated: `[T, N]` bool; a life lost in an Atari game counts as terminated.
        valid: `[T, N]` bool, false where a row is no transition.
        next_values: `[T, N]`, V of the true successor: of the final observation where the episode
            was truncated.
        memory: `[T, N, memory_size]`, a recurrent agent's before each step.
        begins: `[T, N]` bool, where it was cleared, as an episode began in this rollout.
        moments: sums that these rows add to the agent's running statistics
            (`Agent.update_statistics`); empty where it has none.
        episodes: those that ended, ordered by (t, env).
        stats: numbers to be merged and logged.
        snapshot: where its environments are at the end.
    """

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    importance: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    next_values: Tensor
    memory: Tensor
    begins: Tensor
    moments: Tensor
    episodes: list[Episode]
    stats: RolloutStats
    snapshot: EnvSnapshot


class RolloutBuffer:
    """The memory of one rollout, written in place by each `collect`, and the episodes in progress.

    A Rollout refers to this memory: it is good until the next `collect`.
    """

    def __init__(
        self,
        envs: VectorEnvs,
        agent: Agent,
        num_steps: int,
        make_actor: MakeActor = make_plain_actor,
    ) -> None:
        """Allocate for `num_steps` steps of `envs`.

        Args:
            envs: this rank's environments.
            agent: says what actions look like.
            num_steps: T.
            make_actor: makes what chooses the actions of each rollout.
        """
        t, n, spec, distribution = num_steps, envs.num_envs, envs.spec, agent.distribution
        self.envs, self.make_actor = envs, make_actor
        self.num_steps, self.num_envs, self.first_env = t, n, envs.first_env
        self._has_started = False
        self.obs = np.zeros((t + 1, n, *spec.observation.shape), spec.observation.dtype)
        action = torch.zeros((), dtype=distribution.action_dtype).numpy()
        self.actions = np.zeros((t, n, *distribution.action_shape), action.dtype)
        self.rewards = np.zeros((t, n), np.float32)
        self.terminated, self.truncated, self.valid = (np.zeros((t, n), np.bool_) for _ in range(3))
        self.memory = np.zeros((t + 1, n, agent.memory_size), agent.memory_dtype)
        self.begins = np.zeros((t + 1, n), np.bool_)
        self.lost_life = np.zeros((t, n), np.bool_)
        self.finals: list[tuple[int, FinalObs]] = []
        self.returns = np.zeros(n, np.float64)
        self.discounted = np.zeros(n, np.float64)
        self.lengths = np.zeros(n, np.int64)
        largest = max((size - 1 for size in spec.action.sizes), default=0)
        self.log_dtype = action.dtype if action.dtype.kind == "f" else np.min_scalar_type(largest)

    def start(self) -> None:
        """Start the environments' first episodes, unless that has happened."""
        if not self._has_started:
            self._has_started = True
            self.envs.reset(self.obs[-1])

    def rebuild(self, past: Sequence[PastEpisode]) -> list[str]:
        """Bring the environments' episodes back to where they were, instead of `start`.

        Returns:
            Why that failed, for each environment, which then starts a new one; empty where it did not.
        """
        self._has_started = True
        failed = self.envs.rebuild(past, self.obs[-1])
        for env, (episode, why) in enumerate(zip(past, failed, strict=True)):
            if not why:
                self.returns[env], self.lengths[env] = episode.ret, episode.length
                self.discounted[env], self.memory[-1, env] = episode.discounted, episode.memory
        return failed

    def rewards_to_learn(self) -> Tensor:
        """Return the rewards as the loss takes them, before scaling, `[T, N]`."""
        rewards = torch.from_numpy(self.rewards)
        return rewards.sign() if self.envs.spec.is_atari else rewards

    def snapshot(self) -> EnvSnapshot:
        """Copy what the environments' episodes in progress can be rebuilt from."""
        return EnvSnapshot(
            actions=self.actions.astype(self.log_dtype),
            ended=self.terminated | self.truncated,
            obs=self.obs[-1].copy(),
            returns=self.returns.copy(),
            lengths=self.lengths.copy(),
            discounted=self.discounted.copy(),
            memory=self.memory[-1].copy(),
            states=self.envs.states(),
        )
