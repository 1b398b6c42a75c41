"""Machines and versions that runs were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import Checkpoint, newest_first
from fabric_ppo.tools.report.runs import ReportRun
from fabric_ppo.tools.run_names import listed

_NAMES = {
    "machine": "Processor",
    "system": "System",
    "processor": "Instructions",
    "ranks": "Ranks",
    "threads": "Threads of a rank",
    "device": "Device",
    "precision": "Precision",
    "python": "Python",
}
"""Values of `surroundings` that are shown, and their names on the page."""
Rows = list[tuple[str, str]]


def machines_of(runs: Sequence[ReportRun]) -> list[tuple[str, Rows]]:
    """Return the machines: a title, which names the runs where there are several, and its values."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        if rows := _rows(run):
            found.setdefault(tuple(rows), []).append(run.short)
    if len(found) == 1:
        return [("Machine and versions", list(rows)) for rows in found]
    return [(f"Machine and versions of {listed(names)}", list(rows)) for rows, names in found.items()]


def _rows(run: ReportRun) -> Rows:
    values = _surroundings(run)
    rows = [(name, str(values[key])) for key, name in _NAMES.items() if values.get(key) is not None]
    versions = values.get("versions")
    if isinstance(versions, Mapping) and versions:
        rows.append(("Libraries", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def _surroundings(run: ReportRun) -> Mapping[str, Any]:
    """Return the surroundings in the newest whole checkpoint of a run; empty without one."""
    for path in newest_first(run.result / "checkpoints"):
        try:
            values = Checkpoint.from_bytes(path.read_bytes()).values
            found = values.get("surroundings") if isinstance(values, Mapping) else None
        except (OSError, ConfigError):
            continue
        return found if isinstance(found, Mapping) else {}
    return {}
