"""Statistics of scores, against their definitions and against normal distributions."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from fabric_ppo.tools import scores


def test_the_interquartile_mean_drops_a_quarter_on_either_side():
    assert scores.interquartile_mean([100, 1, 2, 3, -100]) == 2
    assert scores.interquartile_mean([5, 1, 3]) == 3
    assert scores.interquartile_mean(range(8)) == pytest.approx(np.mean([2, 3, 4, 5]))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    """For many runs the bootstrap's percentiles are mean +- 1.96 s / sqrt n."""
    of_runs = np.random.default_rng(1).normal(50, 10, 100)
    half = 1.96 * np.std(of_runs) / math.sqrt(len(of_runs))
    assert scores.interval(of_runs, lambda rows: rows.mean(-1)) == pytest.approx(
        (np.mean(of_runs) - half, np.mean(of_runs) + half), rel=0.005
    )
    assert scores.interval([7.0] * 5) == (7, 7)


def test_a_curve_has_at_each_point_the_interval_of_its_scores():
    of_runs = np.random.default_rng(2).normal(0, 1, (6, 3))
    low, high = scores.curve_interval(of_runs)
    assert list(zip(low, high, strict=True)) == [scores.interval(column) for column in of_runs.T]


def test_the_probability_of_improvement_counts_pairs():
    assert scores.probability_of_improvement([3, 1], [2]) == 0.5
    assert scores.probability_of_improvement([2, 2], [2]) == 0.5
    assert scores.probability_of_improvement([5, 6], [1, 2, 5]) == pytest.approx(5.5 / 6)


def test_the_probability_of_improvement_of_normal_scores():
    """P(X > Y) of two normal variables is Phi(difference of means / deviation of X - Y)."""
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(1, 1, 2000), rng.normal(0, 1, 2000)
    expected = NormalDist().cdf(1 / math.sqrt(2))
    assert scores.probability_of_improvement(ours, theirs) == pytest.approx(expected, abs=0.02)
    few = slice(40)
    low, high = scores.improvement_interval(ours[few], theirs[few])
    assert low < expected < high
    assert scores.improvement_interval([3, 4], [1, 2]) == (1, 1)
