"""Tests of a trained agent: greedy or stochastic episodes, with seeds that training cannot draw."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.agents.policy import Policy
from fabric_ppo.envs.contract import UnwrittenVideoError
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env, renew_world
from fabric_ppo.envs.recorder import Recorder, record
from fabric_ppo.envs.spaces import all_finite
from fabric_ppo.process.errors import USER_ERRORS, EnvironmentFault
from fabric_ppo.seeding import Stream, evaluation_seed, uniforms

_SLOTS = 8
"""Environments that play at once, as a batch of the policy."""


@dataclass(frozen=True)
class TestResult:
    """Undiscounted returns and lengths of test episodes, in the order of their seeds.

    Attributes:
        returns: return of each episode.
        lengths: number of steps of each episode.
        unwritten: "a video in FOLDER (REASON)" if the video could not be written, else empty.
    """

    returns: list[float]
    lengths: list[int]
    unwritten: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the values of `summary.json` and `evaluate --json`; std is the population's."""
        return {
            "episodes": len(self.returns),
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "length_mean": float(np.mean(self.lengths)),
            "returns": self.returns,
        }


def evaluate(
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    video_dir: str = "",
    render_mode: str | None = None,
    stochastic: bool = False,
) -> TestResult:
    """Play test episodes; the same seed gives the same episodes.

    Args:
        policy: the agent that acts.
        episodes: number of episodes.
        seed: determines the episodes' reset seeds, none of which training can draw.
        video_dir: folder for a video of the first episode; empty for none. A video that cannot be
            written is noted in the result.
        render_mode: `human` to watch.
        stochastic: sample actions instead of taking the most probable ones.

    Raises:
        ConfigError: the environment cannot be made, or does not render so.
        EnvironmentFault: the environment failed, or returned a value that is not finite.
    """
    # an environment may change the working directory
    video_dir = os.path.abspath(video_dir) if video_dir else ""
    returns, lengths = [0.0] * episodes, [0] * episodes
    waiting = iter(range(episodes))
    with contextlib.ExitStack() as stack:
        slots = [
            _Slot(stack, policy, video_dir if index == 0 else "", render_mode)
            for index in range(1 if render_mode else min(_SLOTS, episodes))
        ]
        playing = _start(slots, seed, waiting)
        while playing:
            # noise by episode and step, so that it does not depend on who plays at the same time
            at = [(slot.episode, lengths[slot.episode]) for slot in playing]
            noise = _noise(policy, seed, at) if stochastic else None
            memory = np.stack([slot.memory for slot in playing])
            actions = policy.act(np.stack([slot.obs for slot in playing]), noise, memory)
            for slot, after in zip(playing, memory, strict=True):
                slot.memory = after
            ended = []
            for slot, action in zip(playing, actions, strict=True):
                reward, terminated, truncated = slot.step(action)
                returns[slot.episode] += reward
                lengths[slot.episode] += 1
                # a slot whose episode ended plays the next one that waits, or leaves the batch
                if (terminated or truncated) and not slot.start(seed, waiting):
                    ended.append(slot)
            playing = [slot for slot in playing if slot not in ended]
    return TestResult(returns, lengths, "".join(slot.unwritten for slot in slots))


def _start(slots: list[_Slot], seed: int, waiting: Iterator[int]) -> list[_Slot]:
    """Start an episode in each environment; return those that play.

    Raises:
        EnvironmentFault: an environment failed.
    """
    playing = []
    for slot in slots:
        if slot.start(seed, waiting):
            playing.append(slot)
        if slot.differs:
            break  # one plays all: the same score for the same episode
    return playing


class _Slot:
    """An environment and the test episode that it plays.

    Attributes:
        episode: number of the episode; -1 before the first.
        obs: the latest observation, packed.
        memory: a recurrent agent's, `[memory_size]`.
        unwritten: as in TestResult, once the environment is closed.
    """

    def __init__(self, stack: contextlib.ExitStack, policy: Policy, video_dir: str, render_mode: str | None) -> None:
        spec, self._new_memory = policy.spec, policy.new_memory
        make = functools.partial(make_gymnasium_env, spec.env_id, spec.wrapper)
        env = make(None if video_dir else render_mode)
        self._env = record(env, video_dir, lambda number: number == 0, make) if video_dir else env
        stack.callback(self._close)
        self._pack = policy.pack
        self._seed = 0
        self.episode = -1
        self.obs: Any = None
        self.memory = self._new_memory()
        self.unwritten = ""

    def step(self, action: NDArray[Any]) -> tuple[float, bool, bool]:
        """Take a step and update `obs`; return reward, terminated, truncated.

        Raises:
            EnvironmentFault: the environment failed, or returned a value that is not finite.
        """
        try:
            obs, reward, terminated, truncated, _ = self._env.step(action.item() if action.ndim == 0 else action)
            reward = float(reward)
        except USER_ERRORS as error:
            raise self._fault(f"step raised {error}") from error
        if not math.isfinite(reward):
            raise self._fault(f"step returned reward {reward}, which is not finite")
        self.obs = self._checked(obs, "step")
        return reward, terminated, truncated

    def start(self, seed: int, waiting: Iterator[int]) -> bool:
        """Start the next of the `waiting` episodes; return False if there is none left.

        Raises:
            EnvironmentFault: as `step`.
        """
        episode = next(waiting, None)
        if episode is None:
            return False
        self.episode, self.memory = episode, self._new_memory()
        renew_world(self._env)
        self._seed = evaluation_seed(seed, episode)
        try:
            obs, _ = self._env.reset(seed=self._seed)
        except USER_ERRORS as error:
            raise self._fault(f"reset raised {error}") from error
        self.obs = self._checked(obs, "reset")
        return True

    @property
    def differs(self) -> bool:
        """Return True once the environment was made otherwise than the others, to be recorded."""
        return isinstance(self._env, Recorder) and self._env.is_remade

    def _close(self) -> None:
        try:
            self._env.close()
        except UnwrittenVideoError as error:
            self.unwritten = str(error)

    def _checked(self, obs: Any, call: str) -> Any:
        """Return an observation packed; raise an EnvironmentFault if it is not finite."""
        try:
            obs = self._pack(obs)
        except ValueError as error:
            raise self._fault(f"{call} returned {error}") from None
        if np.asarray(obs).dtype.kind == "f" and not all_finite(obs):
            raise self._fault(f"{call} returned an observation that is not finite: {obs}")
        return obs

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"test episode {self.episode}, seed {self._seed}: {what}")


def _noise(policy: Policy, seed: int, at: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Return uniform draws from (0, 1) for each (episode, step) in `at`, `[B, noise_size]`."""
    return np.stack([uniforms(seed, Stream.TEST_ACTION, index, 0, policy.noise_size) for index in at])
