"""The user's own trackers, each in a thread, so that one that hangs does not block the run."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fabric_ppo.process.errors import USER_ERRORS, reason_line
from fabric_ppo.process.frames import locate_error
from fabric_ppo.run.trackers.tracker import GivenUp, Position, Tracker, TrackerError


class OwnTracker(Tracker):
    """Tracker that calls another one in a thread of its own, and waits for each call.

    All calls, also of the constructor, come from the same thread, one after the other, while the run
    waits. So a tracker's random draws and changes of state happen at the same points as without a thread.
    """

    def __init__(self, make: Callable[[], Tracker], timeout: float) -> None:
        """Make the tracker.

        Args:
            make: function that returns the tracker.
            timeout: seconds that a call may take; then the tracker is given up.

        Raises:
            GivenUp: this took too long. Errors of `make` are raised, too.
        """
        self._timeout = timeout
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._work,), daemon=True).start()
        self._tracker: Tracker = self._call(make)
        self.label = self._tracker.label

    def start(self, config: Mapping[str, Any], run_dir: Path, resumed_at: Position) -> None:
        """See `Tracker.start`; like all methods, raise GivenUp if it takes too long."""
        self._call(self._tracker.start, config, run_dir, resumed_at)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        self._call(self._tracker.log, metrics, step)

    def flush(self) -> None:
        """See `Tracker.flush`."""
        self._call(self._tracker.flush)

    def artifact(self, path: Path, kind: str) -> None:
        """See `Tracker.artifact`."""
        self._call(self._tracker.artifact, path, kind)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker.finish`; the thread ends."""
        try:
            self._call(self._tracker.finish, summary)
        finally:
            self._calls.put(None)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        # a queue that a signal handler may use while it is in use
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._calls.put((function, args, answers))
        try:
            value, error = answers.get(timeout=self._timeout)
        except queue.Empty:
            raise GivenUp(f"no answer for {self._timeout:g} s") from None
        if error is None:
            return value
        if isinstance(error, USER_ERRORS):
            raise error
        # such as KeyboardInterrupt: nobody interrupts this thread, so it is the tracker's own error
        raise TrackerError(reason_line(locate_error(error)))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, args, answers = call
            try:
                answers.put((function(*args), None))
            except BaseException as error:
                answers.put((None, error))
