"""The rollout: its data, and the buffer into which they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.envs.contract import Array, FinalObs, PastEpisode
from fabric_ppo.envs.episode_info import Ending
from fabric_ppo.envs.tensor_contract import Envs, StepOutputs, TensorEnvs
from fabric_ppo.envs.torch_settings import torch_settings_kept
from fabric_ppo.process.metrics import Metrics, metric
from fabric_ppo.process.packets import copy_together
from fabric_ppo.rollouts.actor import Actor, MakeActor, make_plain_actor
from fabric_ppo.rollouts.info_totals import InfoTotals


@dataclass(frozen=True, order=True)
class Episode:
    """An episode that ended: at step `t` of its rollout, in global environment `env`.

    `ret` is its undiscounted return, `length` its number of steps. `info` has a number for each of
    `VectorEnvs.info_keys`, None where there is none; it is empty where there is none at all.
    """

    t: int
    env: int
    ret: float
    length: int
    info: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class RolloutStats(Metrics):
    """Numbers of a rollout.

    `env_restarts` counts the worker processes that were replaced since the run began; the sums are
    of undiscounted returns and of lengths, over the episodes that ended.
    """

    derived: ClassVar[tuple[str, ...]] = ("Rewards/rew_avg", "Game/ep_len_avg")

    env_steps: float = metric("sum")
    seconds: float = metric("max", "Time/rollout_seconds")
    env_restarts: float = metric("sum", "Info/env_restarts")
    num_episodes: float = metric("sum", "Game/episodes")
    return_sum: float = metric("sum")
    length_sum: float = metric("sum")

    def tagged(self) -> dict[str, float]:
        """Return `Metrics.tagged` with mean return and length, if an episode ended."""
        values = super().tagged()
        if self.num_episodes > 0:
            values["Rewards/rew_avg"] = self.return_sum / self.num_episodes
            values["Game/ep_len_avg"] = self.length_sum / self.num_episodes
        return values


@dataclass(frozen=True)
class EnvSnapshot:
    """State of N environments at the end of a rollout, copied from its buffer.

    Attributes:
        actions: actions of the rollout, `[T, N, ...]`, in the smallest dtype that holds them.
        ended: `[T, N]` bool, true where an episode ended.
        obs: `[N, ...]`, the latest observations.
        returns, lengths, discounted: `[N]`, of the episodes in progress; discounted returns are 0
            unless rewards are scaled.
        memory: `[N, memory_size]`, a recurrent agent's.
        states: what `get_state` of the environments returned; empty where they do not have it.
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
        obs: `[T, N, ...]`, raw, in the environment's dtype; on the agent's device if it has acted
            there, else on the environments' device, like the other fields.
        actions: `[T, N, ...]`, as drawn, before `actions.ActionConverter`.
        log_probs, values: `[T, N]`, of the agent that acted; after `revalue` of a later one.
        importance: `[T, N]`, probability of the action under the agent of `log_probs`, divided by
            that under the agent that acted; 1 without `revalue`.
        rewards: `[T, N]`, scaled if the agent scales them; in Atari games their signs.
        terminated, truncated: `[T, N]` bool; a life lost in an Atari game counts as terminated.
        valid: `[T, N]` bool, false where a row is no transition.
        next_values: `[T, N]`, V of the true successor, which is the final observation where the
            episode was truncated.
        memory: `[T, N, memory_size]`, a recurrent agent's before each step.
        begins: `[T, N]` bool, true where an episode began in this rollout and cleared the memory.
        moments: sums that these rows add to the agent's running statistics
            (`Agent.update_statistics`), `[n]` float64; empty where it has none.
        episodes: episodes that ended, ordered by (t, env).
        stats: numbers to be merged and logged.
        snapshot: state of the environments at the end.
        info: numbers of `info`, over the episodes that ended.
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
    info: InfoTotals = field(default_factory=InfoTotals)


class RolloutTensors(NamedTuple):
    """The data of a rollout, on the device of the environments.

    Attributes:
        obs, memory, begins: `[T + 1, N, ...]`, also after the last step.
        actions, rewards, terminated, truncated, valid, lost_life: `[T, N, ...]`.
    """

    obs: Tensor
    memory: Tensor
    begins: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    lost_life: Tensor


TakeSteps: TypeAlias = "Callable[[Agent, RolloutBuffer, TensorEnvs, Actor], Actor]"
"""Function that takes the steps of a rollout in tensor environments; it returns the actor that has acted."""


class RolloutBuffer:
    """The memory into which `collect` writes a rollout, and the episodes in progress.

    A Rollout refers to these data: it is valid until the next `collect`.

    Attributes:
        envs, make_actor, take_steps, num_steps, num_envs, first_env: settings of a rollout; global
            environment ids begin with `first_env`.
        tensors: the data, on the device of the environments.
        obs, memory, begins, actions, rewards, terminated, truncated, valid, lost_life: the same as
            arrays: on the CPU the same memory, else copies made by `bring`.
        final_obs: `[T, N, ...]`, if TensorEnvs return final observations; else None.
        finals: final observations of the episodes that ended in ArrayEnvs, each with its step.
        endings: numbers of `info` of the episodes that ended, each with its step.
        returns, lengths, discounted: `[N]`, of the episodes in progress.
        log_dtype: smallest dtype that holds an action.
    """

    def __init__(
        self,
        envs: Envs,
        agent: Agent,
        num_steps: int,
        make_actor: MakeActor = make_plain_actor,
        take_steps: TakeSteps | None = None,
    ) -> None:
        """Allocate the arrays.

        Args:
            envs: this rank's N environments.
            agent: gives the shapes of actions and memory.
            num_steps: T.
            make_actor: makes the actor of each rollout.
            take_steps: takes the steps in TensorEnvs; None: `stepping.step_tensors`.
        """
        t, n, spec, distribution = num_steps, envs.num_envs, envs.spec, agent.distribution
        self.envs, self.make_actor, self.take_steps = envs, make_actor, take_steps
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
        if agent.device.type == "cuda" and envs.device == "cpu":
            # memory that a GPU copies from without being waited for
            self.obs = torch.from_numpy(self.obs).pin_memory().numpy()
        arrays = {name: getattr(self, name) for name in RolloutTensors._fields}
        tensors = {name: torch.from_numpy(array).to(envs.device) for name, array in arrays.items()}
        self.tensors = RolloutTensors(**tensors)
        gives_finals = isinstance(envs, TensorEnvs) and envs.finals == "given"
        self.final_obs = torch.zeros_like(self.tensors.obs[1:]) if gives_finals else None
        self.finals: list[tuple[int, FinalObs]] = []
        self.endings: list[tuple[int, Ending]] = []
        self.returns = np.zeros(n, np.float64)
        self.discounted = np.zeros(n, np.float64)
        self.lengths = np.zeros(n, np.int64)
        # actions are logged for as long as episodes last: a byte instead of an int64 where it fits
        largest = max((size - 1 for size in spec.action.sizes), default=0)
        self.log_dtype = action.dtype if action.dtype.kind == "f" else np.min_scalar_type(largest)

    def start(self) -> None:
        """Start the environments' first episodes; do nothing in a later call."""
        if not self._has_started:
            self._has_started = True
            with torch_settings_kept():
                if isinstance(self.envs, TensorEnvs):
                    self.envs.reset(self.tensors.obs[-1])
                else:
                    self.envs.reset(self.obs[-1])

    def restart(self) -> None:
        """Start the environments' first episodes again, before any step is collected."""
        self._has_started = False
        self.start()

    def rebuild(self, past: Sequence[PastEpisode], seconds: float = math.inf) -> list[str]:
        """Restore the episodes that were in progress, instead of `start`.

        Args:
            past: the episode of each environment.
            seconds: time for all of them, after which the rest fails.

        Returns:
            For each environment an empty text, or the reason why that failed; then it starts a new
            episode.
        """
        self._has_started = True
        with torch_settings_kept():
            if isinstance(self.envs, TensorEnvs):
                failed = self.envs.rebuild(past, self.tensors.obs[-1], seconds)
            else:
                failed = self.envs.rebuild(past, self.obs[-1], seconds)
        for env, (episode, why) in enumerate(zip(past, failed, strict=True)):
            if not why:
                self.returns[env], self.lengths[env] = episode.ret, episode.length
                self.discounted[env], self.memory[-1, env] = episode.discounted, episode.memory
        self.tensors.memory[-1] = torch.from_numpy(self.memory[-1])
        return failed

    def steps(self) -> list[StepOutputs]:
        """Return the rows into which each step of TensorEnvs is written."""
        tensors, last = self.tensors, self.final_obs
        columns = (tensors.obs[1:], tensors.rewards, tensors.terminated, tensors.truncated, tensors.valid)
        rows = zip(*columns, [None] * self.num_steps if last is None else last, strict=True)
        return [StepOutputs(*row) for row in rows]

    def bring(self) -> None:
        """Copy to the arrays, in one transfer, what bookkeeping needs of a rollout on another device."""
        if self.tensors.obs.is_cpu:
            return
        names = ("actions", "rewards", "terminated", "truncated", "valid")
        pairs = [(getattr(self.tensors, name), getattr(self, name)) for name in names]
        last = [(self.tensors.obs[-1], self.obs[-1]), (self.tensors.memory[-1], self.memory[-1])]
        sources, arrays = zip(*pairs, *last, strict=True)
        copy_together(sources, [torch.from_numpy(each) for each in arrays])

    def rewards_to_learn(self) -> Tensor:
        """Return the rewards for the loss, before any scaling, `[T, N]`."""
        rewards = self.tensors.rewards
        # scores of Atari games differ by orders of magnitude (Mnih et al., Nature 518, Methods)
        return rewards.sign() if self.envs.spec.is_atari else rewards

    def snapshot(self) -> EnvSnapshot:
        """Return a copy of everything from which the episodes in progress can be rebuilt."""
        # the next rollout is written into the same arrays, maybe before a checkpoint is
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
