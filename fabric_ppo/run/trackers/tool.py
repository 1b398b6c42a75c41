"""Tools that keep the metrics of many runs, such as MLflow: their protocol, and its values.

A tool runs in a process of its own (`tool_process.py`), which copies `metrics.jsonl` into it. So
this file, and those of the tools, import no slow part of the package.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fabric_ppo.process.files import write_atomically

METRICS_FILE = "metrics.jsonl"
"""File in a run's folder that is copied into the tools."""
_ROWS = 50
"""Rows that are passed to a tool at a time: MLflow takes no more than 1,000 numbers."""


class Row(NamedTuple):
    """The scalars of an update, tag -> value, after `step` transitions over all ranks."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A run as the tools see it.

    Attributes:
        dir: the run's folder.
        log_dir: folder of all runs, for a tool's files about all of them.
        step: transitions at the checkpoint from which it resumes; 0 for a new run.
        config: flag -> value, as in `config.yaml`.
    """

    dir: Path
    log_dir: Path
    project: str
    group: str
    tags: Sequence[str]
    step: int
    config: dict[str, Any]

    def remembered(self, tool: str) -> dict[str, str]:
        """Return the argument of `remember` in an earlier process of this run; empty for none."""
        with contextlib.suppress(OSError, ValueError):
            values = json.loads(self._memory_of(tool).read_bytes())
            if isinstance(values, dict) and all(isinstance(value, str) for value in values.values()):
                return values
        return {}

    def remember(self, tool: str, **values: str) -> None:
        """Store the key with which the tool finds the run again."""
        write_atomically(self._memory_of(tool), json.dumps(values).encode() + b"\n")

    def _memory_of(self, tool: str) -> Path:
        return self.dir / f"tracked_by_{tool}.json"  # one for each: they write at the same time


class Opened(NamedTuple):
    """A run that a tool has opened: the rows that it holds already, up to a step, and its place."""

    held: int
    place: str


class Tool(Protocol):
    """A tool; each method may raise anything, and is called by one thread."""

    def address(self, run: TrackedRun) -> str:
        """Return the destination of the run: a server's address, or a path; called before all others."""

    def open(self, run: TrackedRun, warn: Callable[[str], None]) -> Opened:
        """Begin a run, or continue that of this folder, without rows that will be logged again."""

    def log(self, rows: Sequence[Row]) -> None:
        """Add rows."""

    def artifact(self, path: Path, kind: str) -> None:
        """Add a file or a folder of the run."""

    def close(self, summary: dict[str, Any] | None) -> None:
        """End the run; `summary` is None if it did not finish."""


class MetricsReader:
    """Reader of a `metrics.jsonl` to which another process appends."""

    def __init__(self, path: Path, held: int) -> None:
        """Read the file at `path`, but no rows up to step `held`."""
        self._path, self._held, self._offset = path, held, 0

    def rows_until(self, step: int) -> Iterator[list[Row]]:
        """Yield the rows that have not been read, up to `step`, some at a time."""
        rows = []
        for row in self._rows(step):
            rows.append(row)
            if len(rows) == _ROWS:
                yield rows
                rows = []
        if rows:
            yield rows

    def _rows(self, step: int) -> Iterator[Row]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while (line := file.readline()).endswith(b"\n"):
                values = json.loads(line)
                row = Row(values.pop("step"), values)
                if row.step > step:
                    return
                del values["update"]
                self._offset = file.tell()
                if row.step > self._held:
                    yield row


def without_passwords(text: str) -> str:
    """Return a text with user and password removed from addresses of servers."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def test_score(summary: dict[str, Any]) -> list[Row]:
    """Return the mean return of the test at the end, as in TensorBoard; empty without test."""
    mean = summary["test"].get("return_mean")  # there may be no test, or one without episodes
    return [] if mean is None else [Row(summary["env_steps"], {"Test/cumulative_reward": mean})]
