"""Curves of runs, from their metrics: axes, smoothing, and several runs merged into a band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.scores import curve_interval, interquartile_mean

GRID_POINTS = 200
"""Number of points of the grid on which curves of several runs are merged."""
_RESAMPLES = 10_000
"""Number of bootstrap samples of the interval at each point of a grid."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Points of a curve: x and y, `[points]` each."""


def training_seconds(run: RunResult) -> NDArray[np.float64]:
    """Return the seconds of training until the end of each update, `[updates]`.

    They are those of rollouts, updates, evaluations and what is written in between; not those of
    the start, of the test, of updates that a kill has undone, or between a kill and the resumption.
    The last one is `train_seconds` in `summary.json`.
    """
    columns = run.metrics
    steps = np.diff(columns.get("step", np.zeros(0)), prepend=0).astype(np.float64)
    missing = np.full(len(steps), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = steps / columns.get("Time/step_per_second", missing)
    # an update without a transition, as EnvPool can have, has no such speed
    parts = columns.get("Time/rollout_seconds", missing) + columns.get("Time/update_seconds", missing)
    seconds = np.where(np.isfinite(seconds) & (steps > 0), seconds, parts)
    return np.cumsum(np.nan_to_num(seconds))


AXES: dict[str, Callable[[RunResult], NDArray[Any]]] = {
    "transitions": lambda run: run.metrics.get("step", np.zeros(0)),
    "updates": lambda run: run.metrics.get("update", np.zeros(0)),
    "wall-time": training_seconds,
}
"""Axes of curves, by name: x of each update, `[updates]`."""


def metric_names(runs: Sequence[RunResult]) -> list[str]:
    """Return the metrics that any of the runs has, but for the counts `step` and `update`."""
    return list(dict.fromkeys(name for run in runs for name in run.metrics if name not in ("step", "update")))


def curve(run: RunResult, metric: str = "Rewards/rew_avg", x: str = "transitions", smooth: int = 1) -> Curve:
    """Return the points of a metric; updates in which it is missing or not finite have none.

    Args:
        run: the run.
        metric: name in `metrics.jsonl`; a run without it has no points.
        x: one of `AXES`.
        smooth: number of points, each with those before it, that a point is the mean of; at the
            beginning there are fewer.
    """
    places = AXES[x](run).astype(np.float64)
    values = run.metrics.get(metric, np.full(len(places), np.nan)).astype(np.float64)
    is_point = np.isfinite(values)
    return places[is_point], trailing_mean(values[is_point], smooth)


def trailing_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the means of each value and the `window - 1` before it, `[points]`."""
    if window <= 1 or len(values) == 0:
        return values
    # sums of differences from one value: those of large values would lose digits
    sums = np.concatenate([[0.0], np.cumsum(values - values[0])])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts) + values[0])


@dataclass(frozen=True)
class Band:
    """Curves of several runs, merged on a grid.

    Attributes:
        x: the grid, `[points]`.
        middle: interquartile mean over the runs, `[points]`.
        low, high: its 95 % bootstrap interval, `[points]`; equal to `middle` for one run.
        runs: number of runs.
    """

    x: NDArray[np.float64]
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    runs: int


def band(curves: Sequence[Curve], points: int = GRID_POINTS) -> Band:
    """Merge curves where all of them have values, interpolated linearly in between.

    Args:
        curves: those of the runs of a group; those without points do not count.
        points: number of points of the grid, evenly spaced.

    Returns:
        The band; without a point where the curves have no x in common.
    """
    curves = [each for each in curves if len(each[0])]
    grid = curves[0][0] if len(curves) == 1 and len(curves[0][0]) <= points else common_grid(curves, points)
    if not len(grid):
        return Band(grid, grid, grid, grid, len(curves))
    values = np.stack([np.interp(grid, *each) for each in curves])
    low, high = curve_interval(values, resamples=_RESAMPLES)
    return Band(grid, interquartile_mean(values.T), low, high, len(curves))


def common_grid(curves: Sequence[Curve], points: int = GRID_POINTS) -> NDArray[np.float64]:
    """Return an evenly spaced grid where all curves have values; `[0]` where there is no such x.

    Args:
        curves: with at least one point each.
        points: number of points; one where the curves have only one x in common.
    """
    start = max((each[0][0] for each in curves), default=1.0)
    end = min((each[0][-1] for each in curves), default=0.0)
    return np.linspace(start, end, points if start < end else int(start == end))
