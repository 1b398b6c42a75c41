"""Counts of a run: updates, transitions, times and the latest returns."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fabric_ppo.config import Config
from fabric_ppo.run.info_history import InfoHistory
from fabric_ppo.run.metrics import UpdateResult
from fabric_ppo.run.result import RETURN_WINDOW
from fabric_ppo.run.trackers.tracker import Position


@dataclass
class Counts:
    """Counts of a run; except for times, they are the same on all ranks.

    Attributes:
        updates, env_steps, gradient_steps: numbers so far; env_steps are transitions on all ranks.
        resumes: number of times that the run was resumed.
        train_seconds: seconds of all updates.
        wall_seconds_before: seconds of all processes of the run before this one.
        is_exact: true if the result is that of a run without interruptions, bit for bit.
        asked_to_stop: true if a callback has asked to stop (known on rank 0 only).
        ended_by_callback: true if the run ended after its last update because of a callback.
        window: returns of the last RETURN_WINDOW episodes of all ranks.
        info: numbers of `info` of the same episodes, and of the whole run.
        started: time at which this process began the run, from `time.perf_counter`.
    """

    updates: int = 0
    env_steps: int = 0
    gradient_steps: int = 0
    resumes: int = 0
    train_seconds: float = 0.0
    wall_seconds_before: float = 0.0
    is_exact: bool = True
    asked_to_stop: bool = False
    ended_by_callback: bool = False
    window: deque[float] = field(default_factory=lambda: deque(maxlen=RETURN_WINDOW))
    info: InfoHistory = field(default_factory=InfoHistory)
    started: float = field(default_factory=time.perf_counter)

    def after(self, result: UpdateResult) -> Counts:
        """Return the counts after an update with this result."""
        last = result.episodes[-RETURN_WINDOW:]
        known = min(len(self.window), RETURN_WINDOW - len(last))
        return replace(
            self,
            updates=self.updates + 1,
            env_steps=self.env_steps + round(result.rollout.env_steps),
            gradient_steps=self.gradient_steps + round(result.update.gradient_steps),
            window=deque([*self.window, *(episode.ret for episode in last)], maxlen=RETURN_WINDOW),
            info=self.info.after(result.info, round(result.rollout.num_episodes), last, known),
            ended_by_callback=result.requests.callback > 0,
        )

    @property
    def position(self) -> Position:
        """Updates and transitions so far."""
        return Position(self.updates, self.env_steps)

    @property
    def wall_seconds(self) -> float:
        """Seconds of all processes of the run so far."""
        return self.wall_seconds_before + time.perf_counter() - self.started

    @property
    def return_mean(self) -> float | None:
        """Mean return of the window; None without an episode."""
        return math.fsum(self.window) / len(self.window) if self.window else None

    def has_reached(self, goal: float | None) -> bool:
        """Return True if the mean return of a full window is at least `goal`; None: no goal."""
        return goal is not None and len(self.window) == RETURN_WINDOW and (self.return_mean or 0.0) >= goal

    def to_values(self) -> dict[str, Any]:
        """Return the counts as values of a checkpoint."""
        return {
            "update": self.updates,
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            "train_seconds": self.train_seconds,
            "wall_seconds": self.wall_seconds,
            "window": list(self.window),
            "info": self.info.to_values(),
            "resumes": self.resumes,
            "exact_resume": self.is_exact,
            "asked_to_stop": self.asked_to_stop,
            "ended_by_callback": self.ended_by_callback,
        }

    def ended_by(self, config: Config) -> str:
        """Return the reason why a run ends here: `callback`, or the flag, as in `summary.json`."""
        if self.ended_by_callback:
            return "callback"
        return "stop_at_return" if self.has_reached(config.stop_at_return) else "total_timesteps"

    def ends_early(self, config: Config) -> bool:
        """Return True if a run ends here before its full length."""
        return self.ended_by(config) != "total_timesteps"

    def resume_from(self, values: Mapping[str, Any]) -> None:
        """Continue from the counts that `to_values` returned.

        Args:
            values: those of the checkpoint.
        """
        self.updates, self.env_steps = values["update"], values["env_steps"]
        self.gradient_steps, self.resumes = values["gradient_steps"], values["resumes"] + 1
        self.train_seconds, self.wall_seconds_before = values["train_seconds"], values["wall_seconds"]
        self.is_exact = values["exact_resume"]
        self.window.extend(values["window"])
        if "info" in values:  # older versions did not have it
            self.info = InfoHistory.from_values(values["info"])

    def resume_ending(self, values: Mapping[str, Any], config: Config, callbacks: str) -> None:
        """Continue with a callback's request to stop, if that is still valid.

        A run that a callback ended is over, unless it has other callbacks or a greater length now.

        Args:
            values: those of the checkpoint.
            config: the present flags.
            callbacks: the present callbacks' classes, with commas.
        """
        is_longer = config.total_timesteps > values["config"]["total_timesteps"]
        if not is_longer and callbacks == values.get("callbacks", ""):
            self.asked_to_stop = values.get("asked_to_stop") is True
            self.ended_by_callback = values.get("ended_by_callback") is True
