"""Statistics of scores over runs, after rliable (arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_RESAMPLES = 50_000
"""Number of bootstrap samples of an interval."""

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Function of scores `[..., runs]` to `[...]`."""


def interquartile_mean(scores: ArrayLike) -> NDArray[np.float64]:
    """Return the mean over the last axis without its lowest and its highest quarter.

    A quarter is rounded down to whole scores. See arXiv 2108.13264, section 4.3.
    """
    ordered: NDArray[np.float64] = np.sort(np.asarray(scores, np.float64))
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(-1))


def interval(scores: Sequence[float], statistic: Statistic = interquartile_mean) -> tuple[float, float]:
    """Compute the 95 % percentile bootstrap interval of a statistic over runs.

    See arXiv 2108.13264, section 4.1.

    Args:
        scores: one for each run.
        statistic: function from `[samples, runs]` to `[samples]`.
    """
    low, high = curve_interval(np.asarray(scores, np.float64)[:, None], statistic)
    return float(low[0]), float(high[0])


def curve_interval(
    scores: NDArray[np.float64], statistic: Statistic = interquartile_mean, resamples: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the interval at each point of several runs' curves.

    Args:
        scores: `[runs, points]`.
        statistic: as `interval` takes it.
        resamples: number of bootstrap samples; by default that of `interval`.

    Returns:
        Lower and upper bounds, `[points]` each.
    """
    runs, points = scores.shape
    # a fixed seed, so that equal scores give equal intervals; the same runs are drawn at all points
    drawn = np.random.default_rng(0).choice(runs, (resamples or _RESAMPLES, runs))
    bounds = [np.percentile(statistic(scores[:, point][drawn]), [2.5, 97.5]) for point in range(points)]
    low, high = np.asarray(bounds).reshape(points, 2).T
    return low, high


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """Estimate the probability that a run scores higher than one of the others.

    It is the Mann-Whitney statistic over the number of pairs: equal scores count half. See
    arXiv 2108.13264, section 4.3.

    Args:
        scores: `[runs]`.
        others: `[other runs]`.
    """
    difference = np.subtract.outer(np.asarray(scores, np.float64), np.asarray(others, np.float64))
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def improvement_interval(scores: ArrayLike, others: ArrayLike, resamples: int = 2_000) -> tuple[float, float]:
    """Compute the 95 % percentile bootstrap interval of the probability of improvement.

    Both groups of runs are resampled; arguments as for `probability_of_improvement`.
    """
    rng = np.random.default_rng(0)
    ours, theirs = np.asarray(scores, np.float64), np.asarray(others, np.float64)
    drawn = [
        probability_of_improvement(rng.choice(ours, len(ours)), rng.choice(theirs, len(theirs)))
        for _ in range(resamples)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
