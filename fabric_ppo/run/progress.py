"""Progress of a run: a panel on a terminal, a line every few seconds in a file."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fabric_ppo.config import Config
from fabric_ppo.process.console import format_number, is_terminal, print_line
from fabric_ppo.run.checkpoint import Checkpoints
from fabric_ppo.run.counts import Counts

if TYPE_CHECKING:
    from fabric_ppo.run.panel import Panel, PanelState

_SECONDS_BETWEEN_LINES = 5.0
_WINDOW_SECONDS, _WINDOW_UPDATES = 30.0, 20
"""Time and least number of the last updates over which a speed is taken."""
_MOST_UPDATES = 1000
_MOST_RETURNS = 40
"""Number of the last updates with an episode whose returns a panel draws."""


class Speed:
    """Transitions per second over the last updates: all their transitions over all their seconds."""

    def __init__(self) -> None:
        """Begin without an update."""
        self._updates: deque[tuple[int, float]] = deque(maxlen=_MOST_UPDATES)
        self._is_warm = False

    def add(self, steps: int, seconds: float) -> float:
        """Count an update, and return the speed."""
        # the first one compiles and fills caches: it counts only until there is another
        if len(self._updates) == 1 and not self._is_warm:
            self._updates.clear()
            self._is_warm = True
        self._updates.append((steps, seconds))
        total = sum(each for _, each in self._updates)
        while len(self._updates) > _WINDOW_UPDATES and total - self._updates[0][1] >= _WINDOW_SECONDS:
            total -= self._updates.popleft()[1]
        return sum(each for each, _ in self._updates) / max(total, 1e-9)


class Progress:
    """Progress of a run, on stdout: a panel on a terminal, else a line every few seconds."""

    def __init__(
        self, config: Config, run_dir: Path, checkpoints: Checkpoints, total_steps: int, steps: int, enabled: bool
    ) -> None:
        """Count from `steps` towards `total_steps` transitions; print nothing unless `enabled`.

        Args:
            config: the run's configuration.
            run_dir: the run's folder.
            checkpoints: checkpoints of the run; the last one is shown.
            total_steps, steps: transitions of the whole run, and those so far.
            enabled: true on rank 0, without `--quiet`.
        """
        self._config, self._run_dir, self._checkpoints, self._enabled = config, run_dir, checkpoints, enabled
        self._total, self._steps, self._speed = total_steps, steps, Speed()
        self._returns: deque[float] = deque(maxlen=_MOST_RETURNS)
        self._evaluation: tuple[float, int] | None = None
        self._last_line = time.monotonic()
        self._panel: Panel | None = None
        if enabled and is_terminal(sys.stdout) and _can_draw(os.environ):
            from fabric_ppo.run.panel import Panel  # loads rich

            self._panel = Panel()

    def update(self, counts: Counts, metrics: Mapping[str, float], seconds: float) -> None:
        """Show transitions so far, latest mean return, speed, time left, and in a panel the metrics.

        Args:
            counts: counts after the update.
            metrics: tag -> value, as logged.
            seconds: length of the update.
        """
        if not self._enabled:
            return
        steps = counts.env_steps
        speed = self._speed.add(steps - self._steps, seconds)
        self._steps = steps
        left = _clock((self._total - steps) / max(speed, 1e-9))
        if self._panel is not None:
            self._panel.update(self._state(counts, metrics, _rate(speed), left))
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or steps >= self._total:
            self._last_line = time.monotonic()
            score = "-" if counts.return_mean is None else format_number(counts.return_mean)
            text = f"{steps:,}/{self._total:,} steps | return {score} | {_rate(speed)} steps/s | {left} left"
            print_line(text, sys.stdout)

    def _state(self, counts: Counts, metrics: Mapping[str, float], speed: str, left: str) -> PanelState:
        """Return the state of the panel after an update."""
        entropy = metrics.get("Loss/entropy_loss")
        name, saved_at = self._last_checkpoint()
        if "Rewards/rew_avg" in metrics:
            self._returns.append(metrics["Rewards/rew_avg"])
        if "Eval/return_mean" in metrics:
            self._evaluation = (metrics["Eval/return_mean"], counts.updates)
        from fabric_ppo.run.panel import PanelState

        return PanelState(
            env_id=self._config.env_id,
            run_dir=self._run_dir,
            steps=counts.env_steps,
            total_steps=self._total,
            speed=speed,
            left=left,
            returns=tuple(self._returns),
            window_mean=counts.return_mean,
            window_size=len(counts.window),
            explained_variance=metrics.get("Info/explained_variance"),
            approx_kl=metrics.get("Info/approx_kl"),
            entropy=None if entropy is None else -entropy,
            target_kl=self._config.target_kl,
            evaluation=self._evaluation,
            evaluates=self._config.eval_every > 0,
            checkpoint=name,
            saved_at=saved_at,
        )

    def close(self) -> None:
        """Show the last checkpoint in the panel, and leave it above what is printed next."""
        if self._panel is not None:
            self._panel.close(*self._last_checkpoint())

    def _last_checkpoint(self) -> tuple[str | None, float | None]:
        """Return name and time of the last checkpoint, for a panel."""
        path = self._checkpoints.path
        return None if path is None else path.stem, self._checkpoints.saved_at


class TestProgress:
    """Progress of a test or an evaluation, on stdout; a short one prints nothing."""

    def __init__(self, name: str, episodes: int, enabled: bool) -> None:
        """Count towards `episodes`; print nothing unless `enabled`."""
        self._name, self._episodes, self._enabled = name, episodes, enabled
        self._started = time.monotonic()

    def update(self, ended: int, steps: int) -> None:
        """Print the number of episodes that have ended, and the steps of all so far."""
        if self._enabled and time.monotonic() - self._started >= _SECONDS_BETWEEN_LINES:
            self._started = time.monotonic()
            text = f"{self._name} | {ended}/{self._episodes} episodes | {steps:,} steps"
            print_line(text, sys.stdout)


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _can_draw(environ: Mapping[str, str]) -> bool:
    """Return False for terminals without cursor control, such as those of some editors and CI systems."""
    return environ.get("TERM", "").lower() not in ("", "dumb", "unknown") and environ.get("TTY_INTERACTIVE") != "0"
