"""Runs as a report reads them: whatever is there, and a sentence on what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.run.folder import CONFIG_FILE, started_with
from fabric_ppo.run.result import RunResult, load_run
from fabric_ppo.run.trackers.json_lines import METRICS_FILE
from fabric_ppo.tools.run_groups import settings
from fabric_ppo.tools.run_names import short_names
from fabric_ppo.tools.run_problems import result_problems
from fabric_ppo.tools.run_states import RunState, finite, read_state
from fabric_ppo.tools.tables import printable

_UNFINISHED = {"training": "still trains", "failed": "has failed", "stopped": "was stopped before its end"}
"""State of a run -> what a report says of it."""
_LONGEST_NAME = 24
"""Number of characters of a run's name in a sentence."""
_LONGEST = 500
"""Number of characters of a failure that are quoted."""


@dataclass(frozen=True)
class ReportRun:
    """Run in a report.

    Attributes:
        name: end of its folder's path, which no other run of the report has.
        short: the name without what all share, for sentences.
        result: its folder.
        settings: its flags and more, as `run_groups.settings` has them; empty where not known.
        state: as `run_states.RunState` has it.
        notes: sentences on what is missing or damaged.
    """

    name: str
    short: str
    result: RunResult
    settings: Mapping[str, Any]
    state: str
    notes: Sequence[str] = ()

    @property
    def summary(self) -> Mapping[str, Any]:
        """The values of `summary.json`; empty where the run has not finished."""
        return self.result.last_summary if self.state == "done" else {}

    @property
    def env_id(self) -> str:
        """Id of the environment; empty where nothing names it."""
        return str(self.settings.get("env_id") or "")

    @property
    def seed(self) -> str:
        """The seed, as text; empty where nothing names it."""
        return str(self.settings.get("seed", ""))

    @property
    def script(self) -> str:
        """File of the script; empty where nothing names it."""
        name = self.settings.get("script")
        return started_with(str(self.result))[0] or (f"train_{name}.py" if name else "")

    @property
    def updates(self) -> int:
        """Number of updates that were logged."""
        return self.result.metrics.get("update", np.zeros(0)).size

    @property
    def transitions(self) -> int:
        """Number of transitions so far."""
        steps = self.result.metrics.get("step", np.zeros(0))
        return int(self.number("env_steps") or (steps[-1] if steps.size else 0))

    @property
    def test_returns(self) -> NDArray[np.float64]:
        """Returns of the test episodes, `[episodes]`; none without a test."""
        test = self.summary.get("test")
        returns = test.get("returns") if isinstance(test, dict) else None
        found = [finite(each) for each in returns] if isinstance(returns, list) else []
        return np.array([each for each in found if each is not None], np.float64)

    def number(self, name: str) -> float | None:
        """Return a finite number of the summary; None where there is none."""
        return finite(self.summary.get(name))


def read_runs(run_dirs: Sequence[Path]) -> list[ReportRun]:
    """Read runs, each folder once, in the order given.

    Raises:
        ConfigError: a folder holds no run, or cannot be read.
    """
    folders = list({path.resolve(): path for path in run_dirs}.values())
    names = _names(folders)
    shorter = short_names(names, _LONGEST_NAME)
    return [_read_run(path, name, short) for path, name, short in zip(folders, names, shorter, strict=True)]


def _read_run(path: Path, name: str, short: str) -> ReportRun:
    result = load_run(path)
    state = read_state(result, name)
    return ReportRun(name, short, result, settings(result), state.state, list(_notes(result, state)))


def _notes(result: RunResult, state: RunState) -> list[str]:
    """Return sentences on what a run's folder lacks."""
    notes = []
    if state.state != "done":
        end = f": {printable(state.failure)[:_LONGEST]}" if state.failure else ""
        stop = "" if end.endswith(".") else "."
        notes.append(f"The run {_UNFINISHED[state.state]}{end}{stop} This is what there is so far.")
    elif result.has_summary and not result.last_summary.get("test"):
        notes.append("summary.json has no result of a test.")
    notes += [f"{problem}." for problem in result_problems(result, state.state, state.progress == 1)]
    if not result.flags:
        notes.append(f"{CONFIG_FILE} is missing or damaged: the flags are not known.")
    updates, path = result.metrics.get("update", np.zeros(0)), result / METRICS_FILE
    if not updates.size:
        notes.append(f"{METRICS_FILE} is missing, empty or damaged in its first line: there are no curves.")
    elif left_out := len(path.read_bytes().splitlines()) - result.num_lines:
        notes.append(f"{METRICS_FILE} is damaged after update {updates[-1]:,}. Lines left out: {left_out:,}.")
    if left_out := result.num_lines - updates.size:
        notes.append(f"{METRICS_FILE} has updates more than once. Lines left out: {left_out:,}.")
    return notes


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that are all different."""
    parts = [path.resolve().parts for path in folders]
    longest = max(map(len, parts), default=1)
    ends = (["/".join(each[-length:]) for each in parts] for length in range(1, longest + 1))
    return next(names for names in ends if len(set(names)) == len(names))
