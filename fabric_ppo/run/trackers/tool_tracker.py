"""Tracker for a tool in a process of its own: the training does not wait for it, nor hang with it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.run.commands import go_on_with
from fabric_ppo.run.trackers.tool_process import COMMAND
from fabric_ppo.run.trackers.tracker import GivenUp, Position, Tracker, TrackerError

_SECONDS_BETWEEN = 1.0
"""Seconds between two requests to copy rows: MLflow takes a hundred rows as quickly as one."""
_SECONDS_UNFINISHED = 10.0
"""Largest number of seconds for closing after the run was stopped: its process may soon be killed."""


class ToolTracker(Tracker):
    """Tracker whose process copies `metrics.jsonl` into a tool, whenever it is ready for more.

    In an update it only stores a number. Rows that the tool lacks after a kill are in the file, so
    `flush` has nothing to do.
    """

    def __init__(self, tool: str, label: str, run: Mapping[str, Any], timeout: float, quiet: bool) -> None:
        """Track with a tool of `TOOLS`.

        Args:
            tool: its name.
            label: its name for people.
            run: the values of a `TrackedRun` that come from flags.
            timeout: seconds after which a tool that does not answer is given up.
            quiet: do not print the place of the run.
        """
        self.label = label
        self._tool, self._given, self._timeout, self._quiet = tool, dict(run), timeout, quiet
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._is_lost = False
        self._address = ""
        self._since = 0.0  # when the tool was asked something that it has not answered; 0: it has

    def start(self, config: Mapping[str, Any], run_dir: Path, resumed_at: Position) -> None:
        """Start the process, without waiting for it."""
        self._step = self._asked = resumed_at.env_steps
        self._dir = run_dir
        arguments = [json.dumps(sys.path), str(os.getpid()), self._tool]
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the training; and what it starts ends with it
        )
        run = self._given | {"dir": str(run_dir), "step": self._step, "config": dict(config)}
        self._ask_for("open", run=run)
        threading.Thread(target=self._talk, daemon=True).start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Request a copy of the rows up to `step`."""
        self._step = step
        self._check()

    def artifact(self, path: Path, kind: str) -> None:
        """Request that an artifact is tracked."""
        self._ask_for("artifact", path=str(path), kind=kind)
        self._check()

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Request that everything is copied and the run closed, and wait for that."""
        self._ask_for("close", summary=None if summary is None else dict(summary))
        ends = time.monotonic() + (threading.TIMEOUT_MAX if summary is not None else _SECONDS_UNFINISHED)
        errors: list[TrackerError] = []
        try:
            while not self._closed.wait(0.05):
                if time.monotonic() > ends:
                    raise GivenUp(self._reason(f"not closed after {_SECONDS_UNFINISHED:g} s"))
                with _collecting(errors):
                    self._check()
            with _collecting(errors):
                self._check()
        finally:
            self._kill()
        if errors:
            raise errors[0]

    def _ask_for(self, what: str, **more: Any) -> None:
        self._requests.put({"do": what, "until": self._step, **more})

    def _check(self) -> None:
        """Print the messages of the tool.

        Raises:
            TrackerError: the tool has failed to do something.
            GivenUp: it does not answer, has ended or could not begin; its process has ended.
        """
        since = self._since
        while not self._answers.empty():
            answer = self._answers.get()
            if "warning" in answer:
                print_from_rank_zero(f"{self.label}: {answer['warning']}")
            elif "place" in answer and not self._quiet:
                print_from_rank_zero(f"{self.label}: {answer['place']}")
            elif "address" in answer:
                self._address = answer["address"]
            elif "error" in answer:
                if self._is_lost:
                    self._kill()
                    raise GivenUp(self._reason(answer["error"]))
                raise TrackerError(self._reason(answer["error"]))
        if since and time.monotonic() - since > self._timeout:
            self._kill()
            raise GivenUp(self._reason(f"no answer for {self._timeout:g} s"))

    def _reason(self, error: str) -> str:
        """Return the error, its place, and how the tool gets the missing rows later."""
        where = f"{self._address}: " if self._address else ""
        return f"{where}{error}; later, all of it is written by {go_on_with(self._dir)}"

    def _kill(self) -> None:
        """Kill the process and its children; if it has closed the run, they are idle."""
        self._is_lost = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _talk(self) -> None:
        """Pass requests on, one after the other, and rows in between; the thread runs this."""
        while not self._closed.is_set():
            try:
                request = self._requests.get(timeout=_SECONDS_BETWEEN)
            except queue.Empty:
                if self._step == self._asked:
                    continue
                request = {"do": "log", "until": self._step}
            self._asked, self._since = request["until"], time.monotonic()
            is_done = self._is_answered(request)
            self._since = 0.0
            if not is_done or request["do"] == "close":
                self._closed.set()

    def _is_answered(self, request: dict[str, Any]) -> bool:
        """Pass a request on; return False if no other one can follow."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was killed
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                self._since = time.monotonic()
                answer = json.loads(line)
                if "done" in answer:
                    return not self._is_lost
                # a tool that has not begun can do nothing else
                self._is_lost |= "error" in answer and request["do"] == "open"
                self._answers.put(answer)
        self._is_lost = True
        self._answers.put({"error": "its process has ended"})
        return False


@contextlib.contextmanager
def _collecting(errors: list[TrackerError]) -> Any:
    """Collect a TrackerError, after which the run can still be closed."""
    try:
        yield
    except GivenUp:
        raise
    except TrackerError as error:
        errors.append(error)
