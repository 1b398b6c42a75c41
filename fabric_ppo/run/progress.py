"""Progress of a run: one live line on a terminal, a line every few seconds in a file."""

from __future__ import annotations

import contextlib
import sys
import time

from fabric_ppo.process.console import is_terminal, print_line

_SECONDS_BETWEEN_LINES = 5.0


class _Line:
    """A live line with a bar on a terminal; in a file a line every few seconds."""

    def __init__(self, name: str, total: int, completed: int) -> None:
        """Count from `completed` towards `total`."""
        self._last_line = time.monotonic()
        self._live = None
        if is_terminal(sys.stdout):
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._live = RichProgress(*columns, refresh_per_second=4)
            self._live.start()
            self._task = self._live.add_task(name, total=total, completed=completed, text="")

    def print(self, completed: int, text: str, is_last: bool) -> None:
        """Print the present state, if it is time for that."""
        if self._live is not None:
            self._live.update(self._task, completed=completed, text=text)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or is_last:
            self._last_line = time.monotonic()
            print_line(text, sys.stdout)

    def close(self) -> None:
        """Restore the terminal."""
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None


class Progress:
    """Progress of a run, on stdout."""

    def __init__(self, total_steps: int, steps: int, enabled: bool) -> None:
        """Count from `steps` towards `total_steps` transitions; print nothing unless `enabled`."""
        self._total = total_steps
        self._line = _Line("training", total_steps, steps) if enabled else None

    def update(self, steps: int, return_mean: float | None, steps_per_second: float) -> None:
        """Print transitions so far, the latest mean return, speed and the time that is left."""
        if self._line is None:
            return
        score = "-" if return_mean is None else f"{return_mean:.1f}"
        left = (self._total - steps) / max(steps_per_second, 1e-9)
        speed = f"{steps_per_second:,.0f} steps/s"
        text = f"{steps:,}/{self._total:,} steps | return {score} | {speed} | {_clock(left)} left"
        self._line.print(steps, text, steps >= self._total)

    def close(self) -> None:
        """Restore the terminal."""
        if self._line is not None:
            self._line.close()


class TestProgress:
    """Progress of a test or an evaluation, on stdout; nothing is printed of a short one."""

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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
