"""`metrics.jsonl`: the scalars of each update, one JSON object a line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fabric_ppo.run.trackers.tool import METRICS_FILE as METRICS_FILE
from fabric_ppo.run.trackers.tracker import Position, Tracker


class JsonLines(Tracker):
    """Tracker that appends a line in each update, whole or not at all."""

    label = METRICS_FILE

    def start(self, config: Mapping[str, Any], run_dir: Path, resumed_at: Position) -> None:
        """Open the file, and cut off lines of updates that will be logged again."""
        path = run_dir / METRICS_FILE
        if path.exists():
            kept = lines_until(path.read_bytes(), resumed_at.update)
            os.truncate(path, sum(map(len, kept)))
        self._file = path.open("ab", buffering=0)
        self._end = path.stat().st_size
        self._update = resumed_at.update

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line.

        Raises:
            OSError: it cannot be written; the file then ends with the line before.
        """
        self._update += 1
        line = json.dumps({"step": step, "update": self._update} | dict(metrics)).encode() + b"\n"
        try:
            # on a full disk a write may store a part of the line, without an error
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(line)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close the file."""
        self._file.close()


def lines_until(content: bytes, update: float) -> Iterator[bytes]:
    """Yield the lines up to `update`, or up to the first damaged one."""
    for line in content.splitlines(keepends=True):
        try:
            is_kept = line.endswith(b"\n") and json.loads(line)["update"] <= update
        except (ValueError, KeyError, TypeError, RecursionError):
            is_kept = False
        if not is_kept:
            return
        yield line
