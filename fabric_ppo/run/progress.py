"""Progress of a run: one live line on a terminal, a line every few seconds in a file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque

from fabric_ppo.process.console import is_terminal, print_line

_SECONDS_BETWEEN_LINES = 5.0
_WINDOW_SECONDS, _WINDOW_UPDATES = 30.0, 20
"""The last updates over which a speed is taken: those of so many seconds, but at least so many."""
_MOST_UPDATES = 1000


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
    """Progress of a run, on stdout."""

    def __init__(self, total_steps: int, steps: int, enabled: bool) -> None:
        """Count from `steps` towards `total_steps` transitions; print nothing unless `enabled`."""
        self._total, self._steps, self._speed = total_steps, steps, Speed()
        self._line = _Line("training", total_steps, steps) if enabled else None

    def update(self, steps: int, return_mean: float | None, seconds: float) -> None:
        """Print transitions so far, the latest mean return, speed and the time that is left.

        Args:
            steps: transitions so far.
            return_mean: None where no episode has ended.
            seconds: length of the update.
        """
        if self._line is None:
            return
        speed = self._speed.add(steps - self._steps, seconds)
        self._steps = steps
        score = "-" if return_mean is None else f"{return_mean:.1f}"
        left = _clock((self._total - steps) / max(speed, 1e-9))
        text = f"{steps:,}/{self._total:,} steps | return {score} | {_rate(speed)} steps/s | {left} left"
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


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
