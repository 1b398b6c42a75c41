"""Curves of a report as plain numbers, which its script draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.curves import AXES, Curve, band, curve, metric_names

SHOWN_AXES = ("transitions", "wall-time")
"""Horizontal axes of the page: transitions, and seconds of training."""
MOST_POINTS = 1_000
"""Largest number of points of a run's curve; a longer run's are means over equal parts."""
_BAND_POINTS = 100
"""Number of points of a band."""


def run_series(run: RunResult) -> dict[str, Any]:
    """Return the curves of a run.

    Returns:
        `x`, the axes by name, and `metrics` by tag: lists of one value for each update, or part of
        a long run, with None where there is no number.
    """
    axes = {name: _numbers(_thinned(np.asarray(AXES[name](run), np.float64)), 12) for name in SHOWN_AXES}
    metrics = {tag: _numbers(_thinned(run.metrics[tag])) for tag in metric_names([run])}
    return {"x": axes, "metrics": metrics}


def bands(runs: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """Return the interquartile means of a group's curves and their 95 % intervals.

    Returns:
        Tag -> axis -> `x`, `middle`, `low` and `high`, lists of one length. Metrics that fewer than
        two runs have, or at no common place, are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for tag in metric_names(runs):
        for name in SHOWN_AXES:
            curves = [each for each in (curve(run, tag, name) for run in runs) if len(each[0])]
            if len(curves) > 1 and _overlap(curves):
                merged = band(curves, _BAND_POINTS)
                lists = {part: _numbers(getattr(merged, part)) for part in ("x", "middle", "low", "high")}
                found.setdefault(tag, {})[name] = lists
    return found


def _overlap(curves: Sequence[Curve]) -> bool:
    return bool(max(x[0] for x, _ in curves) <= min(x[-1] for x, _ in curves))


def _thinned(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return means over equal parts where there are too many values, of those that are finite."""
    values = np.asarray(values, np.float64)
    if len(values) <= MOST_POINTS:
        return values
    finite = [part[np.isfinite(part)] for part in np.array_split(values, MOST_POINTS)]
    return np.array([part.mean() if len(part) else math.nan for part in finite])


def _numbers(values: NDArray[np.float64], digits: int = 6) -> list[float | None]:
    """Return rounded values for JSON, None for what is not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]
