"""Progress of a run: one live line on a terminal, a line every few seconds in a file."""

from __future__ import annotations

import contextlib
import sys
import time

from fabric_ppo.process.console import print_line

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Progress of a run, on stdout."""

    def __init__(self, total_steps: int, steps: int, enabled: bool) -> None:
        """Count from `steps` towards `total_steps` transitions; print nothing unless `enabled`."""
        self._total = total_steps
        self._enabled = enabled
        self._started = self._last_line = time.monotonic()
        self._live = None
        if enabled and sys.stdout.isatty():
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._live = RichProgress(*columns, refresh_per_second=4)
            self._live.start()
            self._task = self._live.add_task("training", total=total_steps, completed=steps, text="")

    def update(self, steps: int, return_mean: float | None, steps_per_second: float) -> None:
        """Print transitions so far, the latest mean return, speed and the time that is left."""
        if not self._enabled:
            return
        score = "-" if return_mean is None else f"{return_mean:.1f}"
        left = (self._total - steps) / max(steps_per_second, 1e-9)
        speed = f"{steps_per_second:,.0f} steps/s"
        text = f"{steps:,}/{self._total:,} steps | return {score} | {speed} | {_clock(left)} left"
        if self._live is not None:
            self._live.update(self._task, completed=steps, text=text)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or steps >= self._total:
            self._last_line = time.monotonic()
            print_line(text, sys.stdout)

    def close(self) -> None:
        """Restore the terminal."""
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
