"""Trackers: the base class of built-in ones and the user's own, and all trackers of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fabric_ppo.envs.ids import named_function
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, reason_line
from fabric_ppo.process.frames import locate_error
from fabric_ppo.run.slips import print_uncalled_methods
from fabric_ppo.run.writes import Writes

REPORT_FILE = "report.html"
"""Page about a run in its folder, if there is one."""


class Position(NamedTuple):
    """Progress of a run: updates, and transitions over all ranks; zeros at its start."""

    update: int
    env_steps: int


class TrackerError(OSError):
    """A failure of a tracker; the text describes it, for a warning."""


class GivenUp(TrackerError):
    """A tracker that does not answer, or has ended: it is not called again."""


class Tracker:
    """Destination of metrics, on rank 0; a subclass overrides the methods it needs.

    An error in a method other than `start` is printed, and the run continues. If a call takes
    longer than `--track-timeout`, the tracker is not called again. A tracker cannot change the
    weights.

    Attributes:
        label: name of its output, for messages.

    Example:
        >>> from fabric_ppo import Config, Tracker, train
        >>> class Steps(Tracker):
        ...     def log(self, metrics, step):
        ...         print(step, "Loss/value_loss" in metrics)
        >>> tiny = Config(num_steps=32, total_timesteps=128, test_episodes=1)
        >>> _ = train(tiny, verbose=False, trackers=[Steps])
        64 True
        128 True
    """

    label = ""

    def start(self, config: Mapping[str, Any], run_dir: Path, resumed_at: Position) -> None:
        """Start to track a run, which may be a resumed one.

        Args:
            config: flag -> value, as in `config.yaml`.
            run_dir: the run's folder, which exists.
            resumed_at: progress of the checkpoint from which the run resumes; everything logged
                after it will be logged again. Zeros for a new run.
        """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the scalars of an update, tag -> value, after `step` transitions over all ranks."""

    def flush(self) -> None:
        """Write everything that was logged, before a checkpoint is written."""

    def artifact(self, path: Path, kind: str) -> None:
        """Track a file of the run; `kind` is `policy`, `report`, or `video` for a folder of videos."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Stop tracking; `summary` is as in `summary.json`, or None if the run did not finish."""


class Trackers:
    """The trackers of a run."""

    def __init__(self, trackers: Mapping[str, Tracker], writes: Writes) -> None:
        """Track with all of `trackers`, name -> tracker; `writes` records their errors."""
        self._trackers = {each.label or name: each for name, each in trackers.items()}
        self._writes = writes

    def start(self, config: Mapping[str, Any], run_dir: Path, resumed_at: Position) -> None:
        """Start all trackers, or none.

        Raises:
            ConfigError: one of them cannot start; those that had started are finished.
        """
        trackers, self._trackers, self._run_dir = self._trackers, {}, run_dir
        for name, tracker in trackers.items():
            try:
                tracker.start(config, run_dir, resumed_at)
            except USER_ERRORS as error:
                self.finish(None)
                if isinstance(error, OSError) and not isinstance(error, TrackerError):
                    reason = error.strerror or error
                    raise ConfigError(f"{run_dir}: {name} cannot be written ({reason})") from None
                why = error if isinstance(error, TrackerError) else reason_line(locate_error(error))
                raise ConfigError(f"--track {name}: it cannot start ({why})") from None
            self._trackers[name] = tracker

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        for name, tracker in [*self._trackers.items()]:
            with self._tolerating(name):
                tracker.log(metrics, step)

    def flush(self) -> None:
        """See `Tracker.flush`."""
        for name, tracker in [*self._trackers.items()]:
            with self._tolerating(name):
                tracker.flush()

    def artifact(self, path: Path, kind: str) -> None:
        """See `Tracker.artifact`; a file that could not be written, which was reported, is skipped."""
        for name, tracker in [*self._trackers.items()] if path.exists() else []:
            with self._tolerating(name):
                tracker.artifact(path, kind)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker.finish`; a second call does nothing. A finished run's report is tracked."""
        if summary is not None and self._trackers and (self._run_dir / REPORT_FILE).exists():
            self.artifact(self._run_dir / REPORT_FILE, "report")
        # removed first: an error of one must not leave it, or the others, to be finished twice
        while self._trackers:
            name, tracker = self._trackers.popitem()
            with self._tolerating(name):
                tracker.finish(summary)

    @contextlib.contextmanager
    def _tolerating(self, name: str) -> Iterator[None]:
        """Record an error of a tracker; one that is given up is not called again."""
        with self._writes.tolerating(name, USER_ERRORS):
            try:
                yield
            except GivenUp:
                self._trackers.pop(name, None)
                raise


def make_part(name: str, of_flag: str, kind: type[Any]) -> Any:
    """Make one of the user's own parts from its class.

    Args:
        name: the class, `module:Name`.
        of_flag: field of the Config that names it, for messages.
        kind: required base class.

    Raises:
        ConfigError: it cannot be made, or does not have this base class.
    """
    try:
        made = named_function(name, of_flag)()
    except ConfigError:
        raise
    except USER_ERRORS as error:
        raise ConfigError(f"--{of_flag} {name}: it raised {locate_error(error)}") from error
    if not isinstance(made, kind):
        expected = f"{kind.__module__}.{kind.__name__}"
        raise ConfigError(f"--{of_flag} {name}: a subclass of {expected} is expected")
    print_uncalled_methods(made, kind, f"--{of_flag} {name}")
    return made
