"""Page of a sweep, as one HTML file: history, importances, parallel coordinates, the best trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabric_ppo.config import TorchConfig
from fabric_ppo.process.command import package_command
from fabric_ppo.process.console import format_number
from fabric_ppo.process.files import write_atomically
from fabric_ppo.tools.report.html import safe_json, self_contained
from fabric_ppo.tools.sweep.folder import PAGE_FILE, PRESET_FILE
from fabric_ppo.tools.sweep.preset import preset
from fabric_ppo.tools.sweep.space import Choices, Range, Space
from fabric_ppo.tools.sweep.study import FAILURE, Sweep
from fabric_ppo.tools.sweep.table import completed, format_param, importances, params_of, row_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_BEST = 10
"""Trials in the table of the best."""
_MOST_LINES = 500
"""Trials in the parallel coordinates: the best ones."""
_MOST_FAILED = 10
"""Trials that have failed, with their reasons."""


@dataclass(frozen=True)
class Axis:
    """Axis of the parallel coordinates.

    Attributes:
        name: flag, or the value.
        left: place, in percent of the width.
        ticks: texts, and their places from the top in percent of the height.
    """

    name: str
    left: float
    ticks: list[tuple[str, float]]


@dataclass(frozen=True)
class Line:
    """Trial in the parallel coordinates: its points as SVG has them, 0 to 100 both ways, and what is shown of it."""

    points: str
    level: str
    title: str


def write_page(sweep: Sweep) -> None:
    """Write the page of a sweep.

    Raises:
        OSError: it cannot be written; an older one stays as it was.
    """
    write_atomically(sweep.folder / PAGE_FILE, render(sweep).encode("utf-8", "replace"))


def render(sweep: Sweep) -> str:
    """Return the page of a sweep as it is."""
    return self_contained("fabric_ppo.tools.sweep", _contents(sweep), {"number": format_number})


def _contents(sweep: Sweep) -> dict[str, Any]:
    """Return the values of the template."""
    trials, settings, space = sweep.trials(), sweep.settings, sweep.space
    ranked = completed(trials)
    states = [trial.state.name for trial in trials]
    axes, lines = parallel(ranked[:_MOST_LINES], space)
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    return {
        "settings": settings,
        "env_id": space.fixed.get("env_id", TorchConfig.env_id),
        "counts": {name: states.count(name) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")},
        "names": list(space.searched),
        "best": row_of(ranked[0], sweep) if ranked else None,
        "rows": [row_of(trial, sweep) for trial in ranked[:_BEST]],
        "importances": list(importances(sweep).items()),
        "axes": axes,
        "lines": lines,
        "failed": [
            (trial.number, trial.user_attrs.get(FAILURE, "no reason is known")) for trial in failed[:_MOST_FAILED]
        ],
        "space": [(name, _search_text(search)) for name, search in space.searched.items()],
        "preset": preset(sweep),
        "command": package_command(["train", "torch", "--config", str(sweep.folder / PRESET_FILE), "--seed", "100"]),
        "resume": package_command(["sweep", "--resume", str(sweep.folder)]),
        "is_over": len(trials) - states.count("RUNNING") >= settings.trials,
        "data": safe_json(history(trials)),
    }


def history(trials: Sequence[FrozenTrial]) -> dict[str, list[float | None]]:
    """Return the values of trials by their numbers, and the best so far.

    Of a pruned trial the last mean of its evaluations counts, which is no value.
    """
    found: dict[str, list[float | None]] = {"number": [], "value": [], "pruned": [], "best": []}
    best: float | None = None
    for trial in trials:
        state = trial.state.name
        value = float(trial.value) if state == "COMPLETE" and trial.value is not None else None
        best = value if best is None else best if value is None else max(best, value)
        seen = trial.intermediate_values
        found["number"].append(float(trial.number))
        found["value"].append(value)
        found["pruned"].append(float(seen[max(seen)]) if state == "PRUNED" and seen else None)
        found["best"].append(best)
    return found


def parallel(ranked: Sequence[FrozenTrial], space: Space) -> tuple[list[Axis], list[Line]]:
    """Return axes and lines of the parallel coordinates; a tenth of the trials, the best, stand out.

    Args:
        ranked: trials with values, the best first.
        space: flags that are searched.
    """
    if len(ranked) < 2:
        return [], []
    values = [float(trial.value or 0) for trial in ranked]
    low, high = min(values), max(values)
    span = Range(low, high if high > low else low + 1)
    names = [*space.searched, "value"]
    lefts = [100 * i / (len(names) - 1) for i in range(len(names))]
    scales: Mapping[str, Range | Choices] = {**space.searched, "value": span}
    axes = [Axis(name, left, _ticks(scales[name])) for name, left in zip(names, lefts, strict=True)]
    lines = []
    for rank, trial in enumerate(ranked):
        own = {**params_of(trial, space), "value": values[rank]}
        if own.keys() != scales.keys():
            continue
        tops = [_top(scales[name], own[name]) for name in names]
        points = " ".join(f"{left:.2f},{top:.2f}" for left, top in zip(lefts, tops, strict=True))
        level = "best" if rank == 0 else "good" if rank < len(ranked) / 10 else ""
        lines.append(Line(points, level, f"trial {trial.number}: {format_number(values[rank])}"))
    return axes, lines[::-1]


def _top(search: Range | Choices, value: Any) -> float:
    """Return the place of a value on its axis, in percent from the top: high numbers and last choices are above."""
    if isinstance(search, Choices):
        return 100 - 100 * (search.values.index(value) + 0.5) / len(search.values)
    if search.low == search.high:
        return 50.0
    low, high, at = (math.log(each) if search.log else each for each in (search.low, search.high, value))
    return 100 - 100 * (at - low) / (high - low)


def _ticks(search: Range | Choices) -> list[tuple[str, float]]:
    """Return the texts along an axis, and their places."""
    if isinstance(search, Choices):
        return [(format_param(each), _top(search, each)) for each in search.values]
    middle = math.sqrt(search.low * search.high) if search.log else (search.low + search.high) / 2
    shown = dict.fromkeys((search.low, middle, search.high))
    texts = {each: f"{each:,.0f}" if 1e3 <= abs(each) < 1e6 else f"{each:.3g}" for each in shown}
    return [(texts[each], _top(search, each)) for each in shown]


def _search_text(search: Range | Choices) -> str:
    """Return what a flag is searched in, in words."""
    if isinstance(search, Choices):
        return "one of " + ", ".join(map(format_param, search.values))
    more = ", on a log scale" if search.log else "" if search.step is None else f", in steps of {search.step:g}"
    return f"{search.low:g} to {search.high:g}{more}"
