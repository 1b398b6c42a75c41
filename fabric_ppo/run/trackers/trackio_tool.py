"""Trackio, of its own package `trackio`; see `tool.py`."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fabric_ppo.run.trackers.tool import Opened, Row, TrackedRun, test_score

_RESERVED = ("project", "run", "timestamp", "step", "time", "metrics")
"""Names that Trackio reserves, besides those that begin with two underscores."""


class Trackio:
    """Tool that keeps a run in `TRACKIO_DIR`, by default the folder `trackio` in the log dir.

    A resumed run is written anew, with all its rows, in the place of the old one.
    """

    def address(self, run: TrackedRun) -> str:
        """See `Tool`."""
        known = run.remembered("trackio")
        return os.environ.get("TRACKIO_DIR") or known.get("folder") or str(run.log_dir / "trackio")

    def open(self, run: TrackedRun, warn: Callable[[str], None]) -> Opened:
        """See `Tool`; the run's name is that of its folder, unless another run has it."""
        known = run.remembered("trackio")
        folder = os.environ["TRACKIO_DIR"] = self.address(run)
        # it reports what has gone wrong in this way only
        self._problems: list[str] = []
        warnings.showwarning = lambda message, *more: self._problems.append(str(message))
        import trackio

        names = {each.name: each for each in _runs(trackio.Api(), run.project)}
        name = known.get("name", "")
        if not name:
            name = run.dir.name
            while name in names:
                name = f"{run.dir.name}_{secrets.token_hex(2)}"
        elif name in names:
            names[name].delete()
        run.remember("trackio", name=name, folder=folder)
        self._run = trackio.init(
            run.project,
            name,
            group=run.group,
            config={**run.config, "tags": list(run.tags)},
            embed=False,
            auto_log_gpu=False,  # of this process it would be
            auto_log_cpu=False,
        )
        self._raise_problems()
        command = f"TRACKIO_DIR={shlex.quote(folder)} trackio show --project {shlex.quote(run.project)}"
        return Opened(-1, f"{command} shows it")

    def log(self, rows: Sequence[Row]) -> None:
        """See `Tool`."""
        for step, metrics in rows:
            self._run.log({_name(tag): value for tag, value in metrics.items()}, step=step)
        self._raise_problems()

    def artifact(self, path: Path, kind: str) -> None:
        """See `Tool`; an artifact is of the type `kind`."""
        name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{kind}-{self._run.name}")  # it takes no others
        self._run.log_artifact(path, name=name, type=kind)
        self._raise_problems()

    def close(self, summary: dict[str, Any] | None) -> None:
        """See `Tool`; the test's mean return and the file of the summary are tracked."""
        if summary is not None:
            self.log(test_score(summary))
        self._run.finish()
        self._raise_problems()

    def _raise_problems(self) -> None:
        """Raise an error for Trackio's warnings."""
        if self._problems:
            problems, self._problems = self._problems, []
            raise RuntimeError("; ".join(problems))


def _name(tag: str) -> str:
    """Return a valid name of a metric for Trackio."""
    return f"metric/{tag}" if tag in _RESERVED or tag.startswith("__") else tag


def _runs(api: Any, project: str) -> list[Any]:
    try:
        return list(api.runs(project))
    except ValueError:  # there is no such project yet
        return []
