"""The door for trackers: a protocol, and those of a run, together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fabric_ppo.envs.ids import named_function
from fabric_ppo.process.errors import ConfigError, describe_error
from fabric_ppo.run.writes import Writes


class Position(NamedTuple):
    """How far a run is: updates, and transitions over all ranks; zeros at its start."""

    update: int
    env_steps: int


class Tracker:
    """Something that metrics go to, on rank 0; each method may be left as it is.

    An error in any of them but `start` is printed, and the training goes on. Whatever a tracker
    does, the weights stay the same, bit for bit.

    Attributes:
        label: names what it writes, in messages.
    """

    label = ""

    def start(self, config: Mapping[str, Any], run_dir: Path, resumed_at: Position) -> None:
        """Begin, or go on with a run that was resumed.

        Args:
            config: flag -> value, as in `config.yaml`.
            run_dir: the run's folder, which exists.
            resumed_at: where the run goes on. It was killed later than that, maybe: whatever was
                logged after this comes again.
        """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the scalars of one update, tag -> value, after `step` transitions over all ranks."""

    def flush(self) -> None:
        """Write out what was logged: a checkpoint is about to be written."""

    def artifact(self, path: Path, kind: str) -> None:
        """Take a file that the run has written; `kind` is `policy`, or `video` for a folder."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """End; `summary` is that of `summary.json`, None where the run has failed or was stopped."""


class Trackers:
    """The trackers of a run."""

    def __init__(self, trackers: Mapping[str, Tracker], writes: Writes) -> None:
        """Take trackers by name; what they fail to write goes into `writes`."""
        self._trackers = {each.label or name: each for name, each in trackers.items()}
        self._writes = writes

    def start(self, config: Mapping[str, Any], run_dir: Path, resumed_at: Position) -> None:
        """Start all.

        Raises:
            ConfigError: one cannot start.
        """
        for name, tracker in self._trackers.items():
            try:
                tracker.start(config, run_dir, resumed_at)
            except OSError as error:
                reason = error.strerror or error
                raise ConfigError(f"{run_dir}: {name} cannot be written ({reason})") from None
            except Exception as error:  # a tracker of the user's own may raise anything
                reason = describe_error(error)
                raise ConfigError(f"--trackers {name}: it cannot start ({reason})") from None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        for name, tracker in self._trackers.items():
            with self._writes.tolerating(name, Exception):
                tracker.log(metrics, step)

    def flush(self) -> None:
        """See `Tracker.flush`."""
        for name, tracker in self._trackers.items():
            with self._writes.tolerating(name, Exception):
                tracker.flush()

    def artifact(self, path: Path, kind: str) -> None:
        """See `Tracker.artifact`."""
        for name, tracker in self._trackers.items():
            with self._writes.tolerating(name, Exception):
                tracker.artifact(path, kind)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker.finish`; a second call does nothing."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            with self._writes.tolerating(name, Exception):
                tracker.finish(summary)


def make_trackers(names: Sequence[str]) -> dict[str, Tracker]:
    """Make the trackers of `--trackers`.

    Raises:
        ConfigError: one of the user's own cannot be made, or is no Tracker.
    """
    return {name: _make_tracker(name) for name in names}


def _make_tracker(name: str) -> Tracker:
    if name == "tensorboard":
        from fabric_ppo.run.trackers.tensorboard import TensorBoard

        return TensorBoard()
    if name == "json_lines":
        from fabric_ppo.run.trackers.json_lines import JsonLines

        return JsonLines()
    tracker: Tracker = make_part(name, "trackers", Tracker)
    return tracker


def make_part(name: str, of_flag: str, kind: type[Any]) -> Any:
    """Make a part of the user's own, which `module:Name` names.

    Raises:
        ConfigError: it cannot be made, or is not of this kind.
    """
    try:
        made = named_function(name, of_flag)()
    except ConfigError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"--{of_flag} {name}: it raised {describe_error(error)}") from error
    if not isinstance(made, kind):
        expected = f"{kind.__module__}.{kind.__name__}"
        raise ConfigError(f"--{of_flag} {name}: a subclass of {expected} is expected")
    return made
