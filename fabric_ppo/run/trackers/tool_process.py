"""Process of a tool, which copies `metrics.jsonl` into the tool, on request.

A tool may hang, print, start threads, change the environment variables or draw random numbers. In a
process of its own none of that reaches the training, and a tool that hangs can be killed.

Requests and answers are JSON, one a line. A request has `do` and `until`, the step up to which rows
are copied first. Answers are `{"address": text}`, `{"warning": text}`, `{"place": text}` and
`{"error": text}`, as many as there are, `{}` for signs of life, and last `{"done": true}`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from fabric_ppo.process.errors import USER_ERRORS, describe_error, reason_line
from fabric_ppo.process.launch import die_with_parent
from fabric_ppo.run.trackers.tool import METRICS_FILE, MetricsReader, Tool, TrackedRun, without_passwords

COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fabric_ppo.run.trackers.tool_process import serve; serve()"
)
"""Program of the process; its arguments are `sys.path`, its parent's process id, and the tool."""
TOOLS = {"wandb": "Wandb", "mlflow": "Mlflow", "trackio": "Trackio"}
"""Tool -> its class, in the module `<tool>_tool`."""


def serve() -> None:
    """Answer requests until the run is closed or the training process has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    os.nice(10)  # the training comes first where all cores are busy
    parent, name = int(sys.argv[2]), sys.argv[3]
    # whatever the tool prints, or would ask for, must not get between the lines
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    server = _Server(name, answers)
    if os.getppid() == parent:
        for line in requests:
            if server.handle(json.loads(line)):
                break
    # without the tool's own end of a process: the run has been closed, or is one that was killed
    os._exit(0)


def _reason(text: str) -> str:
    """Return a text of a tool in printable form."""
    return reason_line(without_passwords(text))


class _Server:
    """A tool, and the file that is copied into it."""

    def __init__(self, name: str, answers: TextIO) -> None:
        """Answer on a stream."""
        self._name, self._answers = name, answers
        self._tool: Tool | None = None

    def handle(self, request: dict[str, Any]) -> bool:
        """Handle a request, and answer; return True if it was the last one."""
        try:
            if request["do"] == "open":
                self._open(request)
            elif self._tool is not None:
                self._do(self._tool, request)
        except USER_ERRORS as error:
            self._answer(error=_reason(describe_error(error)))
        self._answer(done=True)
        return bool(request["do"] == "close")

    def _open(self, request: dict[str, Any]) -> None:
        module = importlib.import_module(f"fabric_ppo.run.trackers.{self._name}_tool")
        tool: Tool = getattr(module, TOOLS[self._name])()
        values = request["run"]
        run = TrackedRun(**values | {"dir": Path(values["dir"]), "log_dir": Path(values["log_dir"])})
        # before the tool may hang, or fail without a word of where
        self._answer(address=tool.address(run))
        held, place = tool.open(run, lambda text: self._answer(warning=_reason(text)))
        self._tool, self._reader = tool, MetricsReader(run.dir / METRICS_FILE, held)
        self._answer(place=place)

    def _do(self, tool: Tool, request: dict[str, Any]) -> None:
        try:
            for rows in self._reader.rows_until(request["until"]):
                tool.log(rows)
                self._answer()
        finally:
            if request["do"] == "artifact":
                tool.artifact(Path(request["path"]), request["kind"])
            elif request["do"] == "close":
                tool.close(request["summary"])

    def _answer(self, **answer: Any) -> None:
        try:
            self._answers.write(json.dumps(answer) + "\n")
        except OSError:  # nobody reads it any more
            os._exit(1)
