"""Summary of a run: `summary.json`, and the lines printed at the end of a training."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fabric_ppo.config import Config
from fabric_ppo.process.command import package_command
from fabric_ppo.process.console import format_number
from fabric_ppo.process.files import write_atomically
from fabric_ppo.process.launch import read_launch
from fabric_ppo.rollouts.info_totals import InfoMeans, info_text
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.trackers.tool import METRICS_FILE

_ENDS = {"callback": "a callback", "stop_at_return": "--stop-at-return"}
"""Reasons for the end of a run before its last update."""


@dataclass(frozen=True)
class Summary:
    """Result of a run: the fields of `summary.json`, as docs/runs.md describes them."""

    script: str
    env_id: str
    seed: int
    world_size: int
    total_timesteps: int
    env_steps: int
    updates: int
    ended_by: str
    gradient_steps: int
    wall_seconds: float
    train_seconds: float
    steps_per_second: float
    train_return_mean: float | None
    train_return_episodes: int
    train_info: InfoMeans
    resumes: int
    exact_resume: bool
    test: dict[str, Any]

    def write(self, run_dir: Path) -> None:
        """Write `summary.json`.

        Raises:
            OSError: it cannot be written; an older one stays as it was.
        """
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        write_atomically(run_dir / "summary.json", f"{text}\n".encode())

    def lines(self, run_dir: Path, video_dirs: list[str], again: str) -> str:
        """Return the text printed at the end of a training: its figures, and paths of its results.

        Args:
            run_dir: the run's folder.
            video_dirs: folders with videos.
            again: the command that tests the agent again; empty if its file is missing.
        """
        lines = [
            f"trained {self.env_steps:,} steps in {self.train_seconds:.1f} s ({self.steps_per_second:,.0f} steps/s)",
            *([f"ended   by {_ENDS[self.ended_by]}, after {self.updates} updates"] if self.ended_by in _ENDS else []),
            *([f"tested  {_score(self.test)}"] if self.test["episodes"] else []),
            *([f"summary {run_dir / 'summary.json'}"] if (run_dir / "summary.json").exists() else []),
            *([f"curves  {curves}"] if (curves := _curves(run_dir)) else []),
            *([f"videos  {', '.join(video_dirs)}"] if video_dirs else []),
            *([f"again   {again}"] if again else []),
        ]
        return "\n".join(lines)


def _curves(run_dir: Path) -> str:
    """Return the command that shows a run's curves; empty if nothing has them."""
    if any(run_dir.glob("events.out.tfevents.*")):
        return f"tensorboard --logdir {shlex.quote(str(run_dir))}"
    if (run_dir / METRICS_FILE).exists():
        return package_command(["plot", str(run_dir), "--out", str(run_dir / "curves.svg")])
    return ""


def _score(test: dict[str, Any]) -> str:
    """Return the text of a test's result."""
    mean, std = (format_number(test[name]) for name in ("return_mean", "return_std"))
    text = f"return {mean} +- {std} over {test['episodes']} episodes"
    text = f"{text}, {test['cut_off']} of them cut off" if test["cut_off"] else text
    return text + info_text(test.get("info", {}), test["episodes"])


def summarize(config: Config, counts: Counts, test: dict[str, Any]) -> Summary:
    """Return the summary of a run; `test` is `TestResult.to_dict`, empty before the test."""
    return Summary(
        script=config.script,
        env_id=config.env_id,
        seed=config.seed,
        world_size=read_launch().world_size,
        total_timesteps=config.total_timesteps,
        env_steps=counts.env_steps,
        updates=counts.updates,
        ended_by=counts.ended_by(config),
        gradient_steps=counts.gradient_steps,
        wall_seconds=counts.wall_seconds,
        train_seconds=counts.train_seconds,
        steps_per_second=counts.env_steps / counts.train_seconds,
        train_return_mean=counts.return_mean,
        train_return_episodes=len(counts.window),
        train_info=counts.info.means(),
        resumes=counts.resumes,
        exact_resume=counts.is_exact,
        test=test,
    )
