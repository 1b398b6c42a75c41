"""A run's folder from Python: its summary, its metrics, its agent."""

from __future__ import annotations

import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.agents.policy import Policy, load_agent
from fabric_ppo.agents.policy_file import is_finished
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import newest_first
from fabric_ppo.run.trackers.json_lines import METRICS_FILE, lines_until

_COUNTS = ("step", "update")
"""Metrics that are whole numbers, and that every line has."""


class RunResult(os.PathLike[str]):
    """The folder of a run and what is in it; also of a run that is stopped or still trains.

    It stands for its folder wherever Python takes a path. What is read is kept: open the folder
    again (`load_run`) for what a run that still trains has written since.

    Attributes:
        run_dir: the folder.
        summary: `summary.json`; empty where the run has not finished.
        metrics: what was logged; see there.
        agent: the trained agent.
    """

    def __init__(self, run_dir: str | os.PathLike[str], own_code: bool = False) -> None:
        """Open a folder; nothing is read yet. For `own_code` see `load_agent`."""
        self.run_dir = Path(run_dir)
        self._own_code = own_code

    @functools.cached_property
    def is_finished(self) -> bool:
        """True if the run has reached its end, and has not gone on since."""
        return bool(self._summary) and is_finished(self.run_dir)

    @property
    def summary(self) -> dict[str, Any]:
        """The values of `summary.json`; empty where the run has not finished."""
        return self._summary if self.is_finished else {}

    @functools.cached_property
    def _summary(self) -> dict[str, Any]:
        """The values of `summary.json`, also of an end after which the run has gone on."""
        try:
            values = json.loads((self.run_dir / "summary.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    @functools.cached_property
    def metrics(self) -> dict[str, NDArray[Any]]:
        """The scalars of `metrics.jsonl`, name -> `[updates]`, NaN where an update has none.

        `step` and `update` are int64, the others float64: pandas and polars make a table of it.
        Empty where the run has logged nothing there.
        """
        path = self.run_dir / METRICS_FILE
        content = path.read_bytes() if path.is_file() else b""
        rows = [json.loads(line) for line in lines_until(content, math.inf)]
        names = dict.fromkeys(name for row in rows for name in row)
        return {
            name: np.array([row.get(name, math.nan) for row in rows], np.int64 if name in _COUNTS else np.float64)
            for name in names
        }

    @functools.cached_property
    def agent(self) -> Policy:
        """The trained agent; of a run that has not finished, as `load_agent` has it.

        Raises:
            ConfigError: as `load_agent`.
        """
        return load_agent(self.run_dir, self._own_code)

    def __fspath__(self) -> str:
        """Return the folder's path."""
        return os.fspath(self.run_dir)

    def __str__(self) -> str:
        """Return the folder's path."""
        return str(self.run_dir)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        """Return the path of a file in the folder."""
        return self.run_dir / name

    def __repr__(self) -> str:
        """Return the path, and how far the run has come or how well it did."""
        return f"RunResult({str(self)!r}: {self._describe()})"

    def _describe(self) -> str:
        if not self.is_finished:
            return f"not finished, {len(self.metrics.get('update', ()))} updates logged"
        summary = self.summary
        test = summary.get("test") or {}
        score = test.get("return_mean")
        trained = f"{summary.get('env_id')}, {summary.get('env_steps', 0):,} steps"
        return trained if score is None else f"{trained}, return {score:.1f} in {test['episodes']} test episodes"


def load_run(run_dir: str | os.PathLike[str], own_code: bool = False) -> RunResult:
    """Open the folder of a run that has finished, was stopped, or still trains.

    Args:
        run_dir: the folder.
        own_code: see `load_agent`.

    Raises:
        ConfigError: it is no run's folder.
    """
    path = Path(run_dir)
    known = ("config.yaml", "summary.json", METRICS_FILE)
    if not any((path / name).is_file() for name in known) and not any(newest_first(path / "checkpoints")):
        raise ConfigError(f"{path}: holds no run; the folder of a run is expected")
    return RunResult(path, own_code)
