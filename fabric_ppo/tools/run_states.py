"""A run at a glance: its state, how far it has come, how well and how fast it learns."""

from __future__ import annotations

import datetime
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.files import newest_first, update_of
from fabric_ppo.run.folder import CONFIG_FILE, FAILURE_FILE, is_locked
from fabric_ppo.run.result import RETURN_WINDOW, WINDOW_RETURN, RunResult
from fabric_ppo.run.trackers.json_lines import METRICS_FILE
from fabric_ppo.tools.curves import curve, training_seconds
from fabric_ppo.tools.run_groups import settings
from fabric_ppo.tools.run_problems import POLICY_FILE, problems_of

_STARTED = "%Y-%m-%d_%H-%M-%S"
"""Time that the name of a run's folder begins with, unless `--run-dir` named it."""


@dataclass(frozen=True)
class RunState:
    """A run at a glance; None for what is not known.

    Attributes:
        id: path of its folder, relative to the folder that was searched.
        run_dir: path of its folder.
        script, env_id, seed: as in `summary.json`.
        state: `training` (a process has its lock), `done` (also where a result has been lost: see
            `problems`), `failed` (`failure.txt` has the error), or `stopped` (by a signal or a
            kill: `--resume` goes on with it).
        failure: the error of a run that has failed.
        updates, total_updates: number so far, and of the whole run.
        env_steps, total_env_steps: transitions over all ranks so far, and of the whole run.
        train_return_mean: of the last 100 training episodes, or of all where there were fewer.
        train_return_episodes: number of these; None where an older version did not log the mean:
            then it is that of the episodes that ended in the last update with any.
        test_return_mean: of the test episodes.
        steps_per_second: transitions per second of training.
        started, written: times of its start and of its last line or file, in seconds since 1970.
        problems: files that are missing or cannot be read.
    """

    id: str
    run_dir: str
    script: str | None
    env_id: str | None
    seed: int | None
    state: str
    failure: str | None
    updates: int
    total_updates: int | None
    env_steps: int
    total_env_steps: int | None
    train_return_mean: float | None
    train_return_episodes: int | None
    test_return_mean: float | None
    steps_per_second: float | None
    started: float | None
    written: float | None
    problems: tuple[str, ...]

    @property
    def train_return(self) -> TrainReturn:
        """Mean return of the last training episodes, with their number."""
        return TrainReturn(self.train_return_mean, self.train_return_episodes)

    @property
    def progress(self) -> float | None:
        """Share of the updates that are made, from 0 to 1; less than 1 for a run that ended early."""
        return None if not self.total_updates else min(1.0, self.updates / self.total_updates)

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `--json` prints; times in ISO 8601 with the zone."""
        times = {name: value and _iso(value) for name, value in (("started", self.started), ("written", self.written))}
        return asdict(self) | times | {"progress": self.progress, "problems": list(self.problems)}


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def read_state(run: RunResult, of: str) -> RunState:
    """Read a run at a glance; what is damaged is left out and named in `problems`.

    Args:
        run: the run.
        of: its id.
    """
    own, state = settings(run), state_of(run)
    summary = run.last_summary if state == "done" and run.has_summary else {}
    try:
        figures = _of_summary(run) if summary else _of_metrics(run)
        ranks = _ranks(run, own, is_done=bool(summary))
    except ConfigError:  # which is among the problems
        figures, ranks = _Figures(), 1
    total_updates, per_update = _totals(own, ranks)
    test = summary.get("test")
    return RunState(
        id=of,
        run_dir=str(run),
        script=_text(own.get("script")),
        env_id=_text(own.get("env_id")),
        seed=_whole(own.get("seed")),
        state=state,
        failure=_failure(run.run_dir) if state == "failed" else None,
        updates=figures.updates,
        total_updates=total_updates,
        env_steps=figures.env_steps,
        total_env_steps=None if total_updates is None else total_updates * per_update,
        train_return_mean=figures.train_return.mean,
        train_return_episodes=figures.train_return.episodes,
        test_return_mean=finite(test.get("return_mean")) if isinstance(test, dict) else None,
        steps_per_second=figures.speed,
        started=_started(run.run_dir),
        written=_written(run.run_dir),
        problems=tuple(problems_of(run, state, bool(total_updates) and figures.updates >= (total_updates or 0))),
    )


def state_of(run: RunResult) -> str:
    """Return `training`, `failed`, `done` or `stopped`; see `RunState`."""
    if is_locked(run.run_dir):
        return "training"
    if (run.run_dir / FAILURE_FILE).exists():
        return "failed"
    if not run.has_summary:  # the policy is written just before it, or has been left alone
        return "done" if (run / POLICY_FILE).exists() else "stopped"
    # by the checkpoints' names: to read all of them takes long where there are many runs
    newest = next(newest_first(run / "checkpoints"), None)
    return "done" if newest is None or update_of(newest) <= run.last_summary["updates"] else "stopped"


@dataclass(frozen=True)
class TrainReturn:
    """Mean return of a run's last training episodes, and their number: `RunState` describes both."""

    mean: float | None = None
    episodes: int | None = None

    @property
    def is_partial(self) -> bool:
        """True for a mean that is known not to be one over 100 episodes."""
        return self.mean is not None and (self.episodes or 0) < RETURN_WINDOW


def train_return(run: RunResult, is_done: bool) -> TrainReturn:
    """Return the mean return of a run's last training episodes.

    Raises:
        ConfigError: `metrics.jsonl` is needed, and cannot be read.
    """
    summary = run.last_summary
    if is_done and "train_return_mean" in summary:
        episodes = _whole(summary.get("train_return_episodes", RETURN_WINDOW))
        return TrainReturn(finite(summary["train_return_mean"]), episodes)
    places, means = curve(run, WINDOW_RETURN, "updates")
    last_places, last = curve(run, x="updates")
    if not len(last) and not len(means):
        return TrainReturn()
    if not len(means) or (len(last) and last_places[-1] > places[-1]):
        return TrainReturn(float(last[-1]))
    counted = np.nan_to_num(run.metrics.get("Game/episodes", np.full(1, RETURN_WINDOW))).clip(0, RETURN_WINDOW)
    return TrainReturn(float(means[-1]), int(min(RETURN_WINDOW, counted.sum())))


@dataclass(frozen=True)
class _Figures:
    """Updates, transitions, return and speed of a run."""

    updates: int = 0
    env_steps: int = 0
    train_return: TrainReturn = TrainReturn()
    speed: float | None = None


def _of_summary(run: RunResult) -> _Figures:
    """Return the figures of a run that is done."""
    summary = run.last_summary
    updates, env_steps = (_whole(summary.get(name)) or 0 for name in ("updates", "env_steps"))
    return _Figures(updates, env_steps, train_return(run, is_done=True), finite(summary.get("steps_per_second")))


def _of_metrics(run: RunResult) -> _Figures:
    """Return the figures of a run that is not done."""
    columns = run.metrics
    if not columns:
        return _Figures()
    seconds = training_seconds(run)[-1]
    steps = int(columns["step"][-1])
    speed = float(steps / seconds) if seconds > 0 else None
    return _Figures(int(columns["update"][-1]), steps, train_return(run, is_done=False), speed)


def _ranks(run: RunResult, own: dict[str, Any], is_done: bool) -> int:
    """Return the number of ranks with environments."""
    if own.get("script") == "fabric_decoupled":
        return 1
    size = (_whole(own.get("num_steps")) or 0) * (_whole(own.get("num_envs")) or 0)
    if is_done or not run.metrics or not size:
        return _whole(own.get("world_size")) or 1
    # config.yaml does not have the number of hosts; with EnvPool some rows are no transitions
    steps = run.metrics["step"]
    longest = int(np.diff(steps, prepend=0).max())
    return max(1, math.ceil(longest / size))


def _totals(own: dict[str, Any], ranks: int) -> tuple[int | None, int]:
    """Return the number of updates of the whole run, and the transitions of each."""
    total, steps, envs = (_whole(own.get(name)) for name in ("total_timesteps", "num_steps", "num_envs"))
    if not total or not steps or not envs:
        return None, 0
    per_update = steps * envs * ranks
    return total // (steps if own.get("timestep_unit") == "iteration" else per_update), per_update


def _failure(run_dir: Path) -> str | None:
    """Return the first line of the error that ended a run."""
    try:
        lines = (run_dir / FAILURE_FILE).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[0] if lines else None
    except OSError as error:
        return first_line(error)


def _started(run_dir: Path) -> float | None:
    """Return when a run started: by its folder's name, or else by the oldest file in it."""
    words = "_".join(run_dir.name.split("_")[:2])
    try:
        return time.mktime(time.strptime(words, _STARTED))
    except (ValueError, OverflowError):
        return min(_times(run_dir), default=None)


def _written(run_dir: Path) -> float | None:
    return max(_times(run_dir), default=None)


def _times(run_dir: Path) -> list[float]:
    """Return when the files of a run were written."""
    names = (CONFIG_FILE, METRICS_FILE, "summary.json", "policy.safetensors", "checkpoints", FAILURE_FILE)
    found = []
    for name in names:
        try:
            found.append((run_dir / name).stat().st_mtime)
        except OSError:
            continue
    return found


def finite(value: Any) -> float | None:
    """Return a number as a float; None for what is none, and for NaN and infinities."""
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: Any) -> int | None:
    """Return a whole number from 0 up; None for what is none."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
