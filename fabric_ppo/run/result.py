"""A run's folder in Python: its summary, its metrics, its agent."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fabric_ppo.config_call import answering, path_argument, switch_argument
from fabric_ppo.config_names import run_hint
from fabric_ppo.process.console import format_number
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import newest_first, run_around
from fabric_ppo.run.folder import CONFIG_FILE
from fabric_ppo.run.trackers.json_lines import METRICS_FILE, lines_until

if TYPE_CHECKING:
    from fabric_ppo.agents.policy import Policy

_RUN_DIR = "the folder of a run, as in load_run('RUN_DIR'),"
"""Description of the first argument of `load_run`."""
RETURN_WINDOW = 100
"""Number of episodes, the last ones of all ranks, over which a mean return is taken."""
WINDOW_RETURN = f"Rewards/rew_last_{RETURN_WINDOW}"
"""Name of that mean return in the logs."""
_COUNTS = ("step", "update")
"""Metrics that are whole numbers, and in every line."""
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Safe loader of YAML; the one in C, if available, takes a tenth of the time."""


class RunResult(os.PathLike[str]):
    """The folder of a run and its contents; the run may be finished, stopped, or still training.

    It can be used as a path wherever Python takes one. Contents are read once: to see what a
    running training has written since, open the folder again (`load_run`).

    Attributes:
        run_dir: the folder.
        summary: `summary.json`; empty if the run has not finished.
        flags: `config.yaml`.
        metrics: the logged scalars; see there.
        agent: the trained agent.
        own_code: true if the module of the user's own encoder may be imported; see `load_agent`.

    Example:
        >>> from fabric_ppo import RunResult
        >>> run = RunResult("RUN_DIR")
        >>> run.is_finished, run.flags["env_id"], run.summary["updates"]
        (True, 'CartPole-v1', 2)
        >>> run.metrics["Loss/value_loss"].shape  # [updates]
        (2,)
    """

    def __init__(self, run_dir: str | os.PathLike[str], own_code: bool = False) -> None:
        """Open a folder, without reading it yet. For `own_code` see `load_agent`."""
        self.run_dir = Path(path_argument("RunResult", run_dir, "the folder of a run"))
        self.own_code = own_code

    @functools.cached_property
    def is_finished(self) -> bool:
        """True if the run has reached its end, and has not been continued since."""
        # PyTorch is imported where it is needed: tables of many runs are to be there at once
        from fabric_ppo.agents.policy_file import has_gone_on

        return bool(self.last_summary) and not has_gone_on(self.run_dir)

    @property
    def summary(self) -> dict[str, Any]:
        """Values of `summary.json`; empty if the run has not finished."""
        return self.last_summary if self.is_finished else {}

    @functools.cached_property
    def last_summary(self) -> dict[str, Any]:
        """Values of `summary.json`, also if the run has been continued since."""
        try:
            values = json.loads((self.run_dir / "summary.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    @property
    def has_summary(self) -> bool:
        """True if `summary.json` can be read and has the number of updates."""
        updates = self.last_summary.get("updates")
        return type(updates) is int and 0 <= updates < 2**63

    @functools.cached_property
    def flags(self) -> dict[str, Any]:
        """Flags in `config.yaml`, field name -> value; empty if it cannot be read."""
        try:
            values = yaml.load((self.run_dir / CONFIG_FILE).read_bytes(), _YamlLoader)
        except Exception:  # PyYAML raises many types of errors
            return {}
        return {str(name): value for name, value in values.items()} if isinstance(values, dict) else {}

    @functools.cached_property
    def metrics(self) -> dict[str, NDArray[Any]]:
        """Scalars of `metrics.jsonl`, name -> `[updates]`, NaN where an update has none.

        `step` and `update` are int64, the others float64; pandas and polars can make a table of
        it. Empty if the run has logged nothing there.

        If the file is damaged, it is read up to the first damaged line. If an update occurs more
        than once, its last line counts, and earlier lines of later updates are dropped, as a
        resumed run does. A value that is no number is NaN.

        Raises:
            ConfigError: the file exists and cannot be read.
        """
        rows: list[dict[str, Any]] = []
        for row in self._lines:
            # as a resumed run would have cut the file
            while rows and (rows[-1]["update"] >= row["update"] or rows[-1]["step"] > row["step"]):
                rows.pop()
            rows.append(row)
        names = dict.fromkeys(name for row in rows for name in row)
        return {
            name: np.array([row[name] for row in rows], np.int64)
            if name in _COUNTS
            else np.array([_number(row.get(name)) for row in rows], np.float64)
            for name in names
        }

    @functools.cached_property
    def _lines(self) -> list[dict[str, Any]]:
        path = self.run_dir / METRICS_FILE
        try:
            content = path.read_bytes() if path.is_file() else b""
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        lines = map(json.loads, lines_until(content, math.inf))
        return list(itertools.takewhile(_is_counted, lines))

    @property
    def num_lines(self) -> int:
        """Number of lines of `metrics.jsonl` up to the first damaged one.

        Raises:
            ConfigError: as in `metrics`.
        """
        return len(self._lines)

    @functools.cached_property
    def agent(self) -> Policy:
        """Trained agent; for a run that has not finished see `load_agent`.

        Raises:
            ConfigError: as in `load_agent`.
        """
        from fabric_ppo.agents.policy import load_agent

        return load_agent(self.run_dir, self.own_code)

    if not TYPE_CHECKING:  # to a type checker it would mean that every name exists

        def __getattr__(self, name: str) -> Any:
            """Raise an AttributeError that names the method to use instead, as for `learn` and `predict`."""
            own = [each for each in dir(type(self)) if not each.startswith("_")]
            raise AttributeError(f"'RunResult' object has no attribute {name!r}{run_hint(name, own)}")

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
        """Return the path, and the progress or the score of the run."""
        return f"RunResult({str(self)!r}: {self._describe()})"

    def _describe(self) -> str:
        if not self.is_finished:
            return f"not finished, {len(self.metrics.get('update', ()))} updates logged"
        summary = self.summary
        test = summary.get("test") or {}
        score = test.get("return_mean")
        trained = f"{summary.get('env_id')}, {summary.get('env_steps', 0):,} steps"
        tested = "" if score is None else f", return {format_number(score)} in {test['episodes']} test episodes"
        return trained + tested


def _is_counted(row: dict[str, Any]) -> bool:
    """Return True if a line of `metrics.jsonl` has the counts that every line has."""
    return all(type(row.get(name)) is int and 0 <= row[name] < 2**63 for name in _COUNTS)


def _number(value: Any) -> float:
    """Return a metric's value; NaN if it is no number."""
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan


@answering(_RUN_DIR)
def load_run(run_dir: str | os.PathLike[str], own_code: bool = False) -> RunResult:
    """Open the folder of a run that has finished, was stopped, or is still training.

    Args:
        run_dir: the folder.
        own_code: see `load_agent`.

    Raises:
        ConfigError: it is not the folder of a run.

    Example:
        >>> from fabric_ppo import load_run
        >>> load_run("RUN_DIR").metrics["update"]
        array([1, 2])
    """
    path = Path(path_argument("load_run", run_dir, _RUN_DIR))
    own_code = switch_argument("load_run", "own_code", own_code)
    known = (CONFIG_FILE, "summary.json", METRICS_FILE)
    try:
        is_run = any((path / name).is_file() for name in known) or any(newest_first(path / "checkpoints"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); the folder of a run is expected") from None
    if not is_run and (around := run_around(path)) is not None:
        raise ConfigError(f"{path}: is a part of a run; did you mean {around}?")
    if not is_run:
        raise ConfigError(f"{path}: holds no run; the folder of a run is expected")
    return RunResult(path, own_code)
