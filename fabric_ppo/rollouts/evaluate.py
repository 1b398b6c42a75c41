"""Tests of a trained agent: greedy or stochastic episodes, with seeds that training cannot draw."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.agents.policy import Policy
from fabric_ppo.config import TEST_STEP_LIMIT
from fabric_ppo.config_info_keys import InfoKey, info_keys_of
from fabric_ppo.envs.checked_env import CheckedEnv
from fabric_ppo.envs.contract import UnwrittenVideoError
from fabric_ppo.envs.episode_info import Reading, number_names, numbers_of
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.ids import find_batch
from fabric_ppo.envs.known import is_gymnasium_class
from fabric_ppo.envs.nested_actions import pack_batch
from fabric_ppo.envs.recorder import Recorder, record
from fabric_ppo.envs.torch_settings import torch_settings_kept
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError, describe_error
from fabric_ppo.process.signals import pass_on_stop
from fabric_ppo.rollouts.demonstrations import EpisodeLog
from fabric_ppo.rollouts.evaluate_batch import evaluate_batch
from fabric_ppo.rollouts.info_totals import InfoTotals
from fabric_ppo.seeding import Stream, evaluation_seed, uniforms

_SLOTS = 8
"""Largest number of environments that play at once, as a batch of the policy."""

ReportProgress = Callable[[int, int], None]
"""Function that is called with the number of finished episodes, and of all steps so far."""


@dataclass(frozen=True)
class TestResult:
    """Undiscounted returns and lengths of test episodes, in the order of their seeds.

    Attributes:
        returns: return of each episode.
        lengths: number of steps of each episode.
        cut_off: number of episodes that did not end within the limit of steps.
        unwritten: "a video in FOLDER (REASON)" if the video could not be written, else empty.
        info: numbers of `info`, over the episodes.
        infos: numbers of `info` of each episode, by name; None if an episode has none.
        info_names: keys that have numbers in the `info` of an episode's last step.
    """

    returns: list[float]
    lengths: list[int]
    cut_off: int = 0
    unwritten: str = ""
    info: InfoTotals = field(default_factory=InfoTotals)
    infos: dict[str, list[float | None]] = field(default_factory=dict)
    info_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return mean and deviation of the returns, and the number of episodes."""
        cut_off = f", cut_off={self.cut_off}" if self.cut_off else ""
        if not self.returns:
            return "TestResult(episodes=0)"
        mean, std = float(np.mean(self.returns)), float(np.std(self.returns))
        return f"TestResult(return_mean={mean:.6g}, return_std={std:.6g}, episodes={len(self.returns)}{cut_off})"

    def to_dict(self) -> dict[str, Any]:
        """Return the values of `summary.json` and `evaluate --json`; std is the population's.

        Means over no episode are None. `info` is included if an episode had a number of it, or if
        one was requested.
        """
        has_any = len(self.returns) > 0
        info = self.info.means()
        scores: dict[str, Any] = {
            "episodes": len(self.returns),
            "cut_off": self.cut_off,
            "return_mean": float(np.mean(self.returns)) if has_any else None,
            "return_std": float(np.std(self.returns)) if has_any else None,
            "length_mean": float(np.mean(self.lengths)) if has_any else None,
            "returns": self.returns,
        }
        return scores | ({"info": info} if info else {})


def evaluate(
    policy: Policy,
    episodes: int = 100,
    seed: int = 0,
    *,
    video_dir: str = "",
    render_mode: str | None = None,
    stochastic: bool = False,
    at_once: int = _SLOTS,
    step_limit: int = TEST_STEP_LIMIT,
    report: ReportProgress | None = None,
    info_keys: str | None = None,
    log: EpisodeLog | None = None,
) -> TestResult:
    """Play test episodes; the same seed gives the same episodes, however many play at once.

    Args:
        policy: the agent that acts.
        episodes: number of episodes.
        seed: determines the episodes' reset seeds; training cannot draw the same ones.
        video_dir: folder for a video of the first episode; empty: no video. The result notes a
            video that cannot be written.
        render_mode: `human` to watch.
        stochastic: sample actions instead of taking the most probable ones.
        at_once: largest number of environments to open, at most 8; not for Gymnasium's own. If a
            second one cannot be made, one plays all.
        step_limit: steps after which an episode is cut off.
        report: called after each step of all environments.
        info_keys: numbers of `info` to read, in the form of `--info-keys`.
        log: gets every transition.

    Raises:
        ConfigError: the environment cannot be made or rendered in this mode, or a key is invalid.
        EnvironmentFault: the environment failed, or returned a value that is not finite.
    """
    keys = info_keys_of(info_keys)
    # an environment may change the working directory
    video_dir = os.path.abspath(video_dir) if video_dir else ""
    if find_batch(policy.spec.env_id) is not None:
        options: dict[str, Any] = {"video_dir": video_dir, "render_mode": render_mode, "stochastic": stochastic}
        options |= {"step_limit": step_limit, "report": report, "log": log}
        return _of_batch(policy, episodes, seed, keys, options)
    scores = _Scores([0.0] * episodes, [0] * episodes, [None] * episodes)
    waiting = iter(range(episodes))
    with torch_settings_kept(), contextlib.ExitStack() as stack:
        most = 1 if render_mode else min(at_once, episodes)
        slots = _open_slots(stack, policy, keys, most, episodes, video_dir, render_mode)
        playing = _start(slots, seed, waiting)
        while playing:
            # noise by episode and step, so that it does not depend on who plays at the same time
            at = [(slot.episode, scores.lengths[slot.episode]) for slot in playing]
            _step_all(policy, playing, _noise(policy, seed, at) if stochastic else None, scores, step_limit, log)
            # a slot whose episode ended plays the next one that waits, or leaves the batch
            playing = [slot for slot in playing if not slot.has_ended or slot.start(seed, waiting)]
            if report is not None:
                report(scores.ended, sum(scores.lengths))
    for why in dict.fromkeys(slot.close_error for slot in slots if slot.close_error):
        print_line(f"warning: {policy.spec.env_id}: close raised {why}", sys.stderr)
    return scores.result(keys, "".join(slot.unwritten for slot in slots))


def _of_batch(
    policy: Policy, episodes: int, seed: int, keys: tuple[InfoKey, ...], options: dict[str, Any]
) -> TestResult:
    """Play episodes in environments that step as a batch; `options` are those of `evaluate_batch`."""
    with torch_settings_kept():
        played = evaluate_batch(policy, episodes, seed, keys, **options)
    ended = _Scores(played.returns, played.lengths, played.readings, cut_off=played.cut_off)
    return ended.result(keys, played.unwritten)


@dataclass
class _Scores:
    """Scores of all episodes so far, and numbers of those that ended and that were cut off."""

    returns: list[float]
    lengths: list[int]
    readings: list[list[Reading] | None]
    info_names: tuple[str, ...] = ()
    ended: int = 0
    cut_off: int = 0

    def note_info(self, slot: _Slot) -> None:
        """Read the `info` of an episode that has ended in a slot."""
        self.readings[slot.episode] = slot.ending()
        self.info_names = self.info_names or tuple(number_names(slot.info))

    def result(self, keys: tuple[InfoKey, ...], unwritten: str) -> TestResult:
        """Return the result of all episodes."""
        nothing = (None,) * len(keys)
        numbers = [(numbers_of(each) if each else ()) or nothing for each in self.readings]
        columns = {key.name: [row[index] for row in numbers] for index, key in enumerate(keys)}
        return TestResult(
            self.returns,
            self.lengths,
            self.cut_off,
            unwritten,
            info=InfoTotals.of(keys, filter(None, self.readings)),
            infos={name: column for name, column in columns.items() if set(column) != {None}},
            info_names=self.info_names,
        )


def _open_slots(
    stack: contextlib.ExitStack,
    policy: Policy,
    keys: tuple[InfoKey, ...],
    most: int,
    episodes: int,
    video_dir: str,
    render_mode: str | None,
) -> list[_Slot]:
    """Make the environments that play at once; `stack` closes them.

    Raises:
        ConfigError: not even one can be made.
    """
    slots: list[_Slot] = []
    while len(slots) < most:
        try:
            slots.append(_Slot(stack, policy, keys, "" if slots else video_dir, render_mode))
        except ConfigError:
            # of some simulators only one can be open
            if not slots:
                raise
            break
        if slots[0].can_be_many and render_mode is None:
            most = min(_SLOTS, episodes)
    return slots


def _step_all(
    policy: Policy,
    playing: list[_Slot],
    noise: NDArray[Any] | None,
    scores: _Scores,
    step_limit: int,
    log: EpisodeLog | None,
) -> None:
    """Take a step in each environment and add it to the scores, and to the log.

    Raises:
        EnvironmentFault: an environment failed, or returned a value that is not finite.
    """
    memory = np.stack([slot.memory for slot in playing])
    actions = policy.act(np.stack([slot.obs for slot in playing]), noise, memory)
    actions = pack_batch(policy.spec.action, actions)
    for slot, after, action in zip(playing, memory, actions, strict=True):
        # an environment may write into the action
        slot.memory, before, taken = after, slot.obs, action.copy()
        reward, terminated, truncated = slot.play(action)
        has_ended = terminated or truncated
        scores.returns[slot.episode] += reward
        scores.lengths[slot.episode] += 1
        slot.has_ended = has_ended or scores.lengths[slot.episode] >= step_limit
        if log is not None:
            # an episode that is cut off has not come to its end
            truncated = truncated or slot.has_ended != has_ended
            log.add(slot.episode, before, taken, reward, terminated, truncated, slot.obs)
        if slot.has_ended:
            scores.note_info(slot)
        scores.ended += slot.has_ended
        scores.cut_off += slot.has_ended and not has_ended


def cut_off_text(cut_off: int, episodes: int, step_limit: int) -> str:
    """Return a text with the number of episodes that were cut off."""
    return f"{cut_off} of {episodes} episodes did not end, and were cut off after {step_limit:,} steps"


def _start(slots: list[_Slot], seed: int, waiting: Iterator[int]) -> list[_Slot]:
    """Start an episode in each environment; return the environments that play.

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


class _Slot(CheckedEnv):
    """An environment and the test episode that it plays.

    Attributes:
        episode: number of the episode; -1 before the first.
        obs: the latest observation, packed.
        memory: a recurrent agent's, `[memory_size]`.
        has_ended: true if the episode is over.
        can_be_many: true if any number of such environments can be open.
        unwritten: as in TestResult, once the environment is closed.
        close_error: description of an error in closing it; empty without one.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        policy: Policy,
        keys: tuple[InfoKey, ...],
        video_dir: str,
        render_mode: str | None,
    ) -> None:
        spec, self._new_memory = policy.spec, policy.new_memory
        make = functools.partial(make_gymnasium_env, spec.env_id, spec.wrapper, env_kwargs=spec.make_args)
        env = make(None if video_dir else render_mode)
        # a wrapper of the user's own may hold something of which there is only one
        self.can_be_many = spec.is_atari or (not spec.wrapper and is_gymnasium_class(env.unwrapped))
        recorded = record(env, video_dir, lambda number: number == 0, make) if video_dir else env
        super().__init__(recorded, spec, info_keys=keys)
        stack.callback(self._close)
        self.episode = -1
        self.obs: Any = None
        self.memory = self._new_memory()
        self.has_ended = False
        self.unwritten = self.close_error = ""

    def play(self, action: NDArray[Any]) -> tuple[float, bool, bool]:
        """Take a step and update `obs`; return reward, terminated and truncated.

        Raises:
            EnvironmentFault: see `CheckedEnv.step`.
        """
        obs, reward, terminated, truncated = self.step(action.item() if action.ndim == 0 else action)
        self.obs = np.array(obs)  # a copy: environments may share the array that they return
        return reward, terminated, truncated

    def start(self, seed: int, waiting: Iterator[int]) -> bool:
        """Start the next of the `waiting` episodes; return False if there is none left.

        Raises:
            EnvironmentFault: see `CheckedEnv.reset`.
        """
        episode = next(waiting, None)
        if episode is None:
            return False
        self.episode, self.memory, self.has_ended = episode, self._new_memory(), False
        self.place = f"test episode {episode},"
        self.obs = np.array(self.reset(evaluation_seed(seed, episode)))
        return True

    @property
    def differs(self) -> bool:
        """Return True if the environment was made in another way than the others, to be recorded."""
        return isinstance(self.env, Recorder) and self.env.is_remade

    def _close(self) -> None:
        try:
            self.env.close()
        except UnwrittenVideoError as error:
            self.unwritten = str(error)
        except BaseException as error:
            pass_on_stop(error)
            self.close_error = describe_error(error).splitlines()[0]


def _noise(policy: Policy, seed: int, at: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Return uniform draws from (0, 1) for each (episode, step) in `at`, `[B, noise_size]`."""
    return np.stack([uniforms(seed, Stream.TEST_ACTION, index, 0, policy.noise_size) for index in at])
