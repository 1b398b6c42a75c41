"""Test episodes in environments that step as batches: the first episode of each counts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fabric_ppo.agents.policy import Policy
from fabric_ppo.config_info_keys import InfoKey
from fabric_ppo.envs.batched import make_tensor_envs
from fabric_ppo.envs.contract import EnvSettings
from fabric_ppo.envs.episode_info import Reading
from fabric_ppo.envs.nested_actions import pack_batch
from fabric_ppo.envs.tensor_contract import StepOutputs, TensorEnvs
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import USER_ERRORS, DoesNotRenderError, first_line
from fabric_ppo.rollouts.demonstrations import EpisodeLog
from fabric_ppo.seeding import Stream, evaluation_seed, uniforms

_MOST_AT_ONCE = 256
"""Games that are played at once."""
_FRAMES_PER_SECOND = 30


@dataclass
class BatchScores:
    """Scores of test games, in the order of their seeds; of several agents the mean return counts.

    Attributes:
        returns, lengths: of each game.
        readings: numbers of `info` of each game, of the first agent that had any; None without.
        cut_off: games that did not end within the limit of steps.
        unwritten: "a video in FOLDER (REASON)" if the video could not be written, else empty.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    readings: list[list[Reading] | None] = field(default_factory=list)
    cut_off: int = 0
    unwritten: str = ""


def evaluate_batch(
    policy: Policy,
    episodes: int,
    seed: int,
    keys: tuple[InfoKey, ...],
    *,
    video_dir: str = "",
    render_mode: str | None = None,
    stochastic: bool = False,
    step_limit: int,
    report: Callable[[int, int], None] | None = None,
    log: EpisodeLog | None = None,
) -> BatchScores:
    """Play test episodes; the arguments are those of `evaluate`, which calls this."""
    spec = policy.spec
    games, scores = min(episodes, _MOST_AT_ONCE), BatchScores()
    if not games:
        return scores
    settings = EnvSettings(spec.env_id, seed, games, 0, games, env_kwargs=spec.make_args, info_keys=keys)
    mode = "rgb_array" if video_dir else render_mode
    # made once: there are simulators that a process has one of
    with contextlib.closing(make_tensor_envs(settings, spec=spec, render_mode=mode, for_test=True)) as envs:
        agents = envs.rows_per_game
        games = envs.num_envs // agents
        video = _Video(video_dir, envs) if video_dir else None
        for first in range(0, episodes, games):
            count = min(games, episodes - first)
            play = _Play(policy, envs, first, seed, stochastic, _RowLog(log, envs, first * agents, count * agents))
            while play.goes_on(count * agents, step_limit):
                if video is not None and first == 0 and play.is_playing[0]:
                    video.capture()
                play.step()
                if report is not None:
                    report(len(scores.returns) + play.num_over(count * agents), sum(scores.lengths) + play.steps)
            play.add_to(scores, count)
        if video is not None:
            scores.unwritten = video.write()
    return scores


class _Play:
    """One episode in each environment of a batch.

    Attributes:
        steps: taken so far.
        is_playing: `[N]`, where the first episode, or game, has not ended.
    """

    def __init__(self, policy: Policy, envs: TensorEnvs, first: int, seed: int, stochastic: bool, log: _RowLog) -> None:
        """Start the games from number `first`, each with a test's seed."""
        self._policy, self._envs, self._first, self._seed, self._log = policy, envs, first, seed, log
        self._stochastic, self.steps = stochastic, 0
        n, space, device = envs.num_envs, envs.spec.observation, envs.device
        obs = torch.from_numpy(np.zeros((n, *space.shape), space.dtype)).to(device)
        rewards, flag = torch.zeros(n, device=device), torch.zeros(n, dtype=torch.bool, device=device)
        final_obs = torch.zeros_like(obs) if envs.finals == "given" else None
        self._outputs = StepOutputs(obs, rewards, flag, flag.clone(), flag.clone(), final_obs)
        self._memory = policy.new_memory(n)
        self.is_playing = np.ones(n, np.bool_)
        self._returns, self._lengths = np.zeros(n), np.zeros(n, np.int64)
        self._readings: list[Any] = [None] * n
        games = range(first, first + n // envs.rows_per_game)
        seeds = [evaluation_seed(seed, game) for game in games for _ in range(envs.rows_per_game)]
        envs.begin(seeds, obs)

    def goes_on(self, count: int, step_limit: int) -> bool:
        """Return True if one of the first `count` rows still plays."""
        return bool(self.is_playing[:count].any()) and self.steps < step_limit

    def step(self) -> None:
        """Take a step in all environments."""
        out, noise = self._outputs, self._noise() if self._stochastic else None
        actions = self._policy.act(out.obs.cpu().numpy(), noise, self._memory)
        actions = pack_batch(self._envs.spec.action, actions)
        self._log.before(out, actions)
        self._envs.step(torch.from_numpy(np.asarray(actions)).to(self._envs.device), out)
        self.steps += 1
        counts = self.is_playing & out.valid.cpu().numpy()
        self._returns += np.where(counts, out.rewards.cpu().numpy(), 0)
        self._lengths += counts
        self._log.add(counts, out)
        for ending in self._envs.endings:
            if self.is_playing[ending.env] and self._readings[ending.env] is None:
                self._readings[ending.env] = list(ending.readings)
        # where there was no transition an episode begins
        self._memory[~out.valid.cpu().numpy()] = 0
        self.is_playing &= ~self._envs.over(out).cpu().numpy()

    def _noise(self) -> NDArray[np.float64]:
        """Return uniform draws from (0, 1) by row and step, `[N, noise_size]`."""
        first, size = self._first * self._envs.rows_per_game, self._policy.noise_size
        rows = range(first, first + self._envs.num_envs)
        return np.stack([uniforms(self._seed, Stream.TEST_ACTION, (row, self.steps), 0, size) for row in rows])

    def num_over(self, count: int) -> int:
        """Return how many games of the first `count` rows have ended."""
        return int((~self.is_playing[:count]).sum()) // self._envs.rows_per_game

    def add_to(self, scores: BatchScores, count: int) -> None:
        """Add the scores of the first `count` games."""
        self._log.cut_off(self._outputs)
        agents = self._envs.rows_per_game
        scores.returns += self._returns.reshape(-1, agents).mean(1)[:count].tolist()
        scores.lengths += self._lengths.reshape(-1, agents).max(1)[:count].tolist()
        of_games = [self._readings[row : row + agents] for row in range(0, count * agents, agents)]
        scores.readings += [next(filter(None, each), None) for each in of_games]
        scores.cut_off += int(self.is_playing[: count * agents : agents].sum())


class _RowLog:
    """Log of the first rows of a batch; does nothing without one."""

    def __init__(self, log: EpisodeLog | None, envs: TensorEnvs, first: int, count: int) -> None:
        """Log `count` rows, as the episodes from number `first` on."""
        self._log, self._envs, self._first, self._count = log, envs, first, count
        self._obs, self._actions = np.zeros(0), np.zeros(0)

    def before(self, out: StepOutputs, actions: NDArray[Any]) -> None:
        """Keep the observations and actions of a step, which environments may write into."""
        if self._log is not None:
            self._obs, self._actions = out.obs.cpu().numpy().copy(), actions.copy()

    def add(self, counts: NDArray[np.bool_], out: StepOutputs) -> None:
        """Add a step where it `counts`, `[N]`."""
        if self._log is None:
            return
        # where the final observation is hidden, the one before stands for it, as in training
        after = {"next row": out.obs, "given": out.final_obs, "hidden": None}[self._envs.finals]
        next_obs = self._obs if after is None else after.cpu().numpy().copy()
        rewards, terminated, truncated = (
            each.cpu().numpy().tolist() for each in (out.rewards, out.terminated, out.truncated)
        )
        for row in np.flatnonzero(counts[: self._count]).tolist():
            ends = terminated[row], truncated[row]
            self._log.add(self._first + row, self._obs[row], self._actions[row], rewards[row], *ends, next_obs[row])

    def cut_off(self, out: StepOutputs) -> None:
        """End the episodes that have not ended within the limit of steps."""
        if self._log is not None:
            for row, obs in enumerate(out.obs[: self._count].cpu().numpy().copy()):
                self._log.cut_off(self._first + row, obs)


class _Video:
    """A video of the first game."""

    def __init__(self, folder: str, envs: TensorEnvs) -> None:
        self._folder, self._envs = folder, envs
        self._frames: list[NDArray[Any]] = []
        self._reason = ""

    def capture(self) -> None:
        """Take a picture of what the agent sees."""
        if self._reason:
            return
        try:
            picture = self._envs.render()
            if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
                given = f"an array of shape {picture.shape} and type {picture.dtype}"
                raise ValueError(f"render returned {given}; [height, width, 3] of uint8 is expected")
            self._frames.append(picture)
        except NotImplementedError:
            raise DoesNotRenderError(self._envs.spec.env_id, "rgb_array") from None
        except USER_ERRORS as error:
            self._reason = first_line(error)

    def write(self) -> str:
        """Write the video; return why it could not be written, else nothing."""
        path = Path(self._folder, "rl-video-episode-0.mp4")
        if not self._reason:
            try:
                self._encode(path)
            except USER_ERRORS as error:
                with contextlib.suppress(OSError):
                    path.unlink()
                self._reason = first_line(error)
        if not self._reason:
            return ""
        unwritten = f"a video in {self._folder} ({self._reason})"
        print_line(f"warning: {unwritten} could not be written; it goes on without", sys.stderr)
        return unwritten

    def _encode(self, path: Path) -> None:
        from moviepy.video.io.ImageSequenceClip import ImageSequenceClip

        path.parent.mkdir(parents=True, exist_ok=True)
        clip = ImageSequenceClip(self._frames, fps=_FRAMES_PER_SECOND)
        try:
            clip.write_videofile(str(path), logger=None)
        finally:
            clip.close()
        # MoviePy does not look at FFmpeg's exit status
        if not path.stat().st_size:
            raise OSError("FFmpeg wrote nothing")
