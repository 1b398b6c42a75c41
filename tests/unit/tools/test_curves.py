"""Curves of runs against their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.run.result import load_run
from fabric_ppo.tools.curves import band, curve, metric_names, trailing_mean, training_seconds
from fabric_ppo.tools.scores import interquartile_mean, interval
from tests.fixtures.configs import TINY
from tests.fixtures.logged_runs import UPDATE, write_run


def test_a_curve_has_the_updates_with_a_value(tmp_path):
    run = load_run(write_run(tmp_path, [None, 2.0, math.nan, 5.0, math.inf]))
    for x, places in (("transitions", [2 * UPDATE, 4 * UPDATE]), ("updates", [2, 4]), ("wall-time", [4.0, 8.0])):
        xs, ys = curve(run, x=x)
        assert (xs.tolist(), ys.tolist()) == (places, [2, 5])
    assert [each.tolist() for each in curve(run, "Loss/none")] == [[], []]
    assert metric_names([run]) == ["Time/step_per_second", "Rewards/rew_avg"]


def test_the_seconds_of_training_are_those_of_all_updates(tmp_path):
    """Transitions over transitions per second; the parts of an update where it has no transition."""
    rows = [(256, 128.0, 1.0, 0.5), (256, 0.0, 1.0, 0.25), (512, 64.0, 1.0, 1.0), (768, math.nan, 3.0, 1.0)]
    names = ("step", "Time/step_per_second", "Time/rollout_seconds", "Time/update_seconds")
    lines = [json.dumps({"update": i, **dict(zip(names, row, strict=True))}) for i, row in enumerate(rows, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert training_seconds(load_run(tmp_path)).tolist() == [2, 3.25, 7.25, 11.25]
    (tmp_path / "metrics.jsonl").write_text("")
    assert training_seconds(load_run(tmp_path)).tolist() == []


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_smoothing_is_the_mean_of_the_last_points(window):
    values = np.random.default_rng(0).normal(1e6, 1, 20)
    expected = [np.mean(values[max(0, i - window + 1) : i + 1]) for i in range(20)]
    np.testing.assert_allclose(trailing_mean(values, window), expected, rtol=1e-14)


def test_a_band_is_the_interquartile_mean_of_interpolated_curves_where_all_have_points():
    curves = [(np.array([0.0, 10.0]), np.array([seed, seed + 10.0])) for seed in range(5)]
    curves[0] = (np.array([-4.0, 4.0, 8.0]), np.array([-4.0, 4.0, 8.0]))
    merged = band(curves, points=5)
    assert merged.x.tolist() == [0, 2, 4, 6, 8]
    for i, x in enumerate(merged.x):
        values = [seed + x for seed in range(5)]
        assert merged.middle[i] == pytest.approx(interquartile_mean(values))
        assert (merged.low[i], merged.high[i]) == pytest.approx(
            interval(values), abs=0.34
        )  # a step of its distribution
    assert merged.runs == 5


def test_a_band_of_one_run_is_the_run_and_of_runs_without_common_points_empty():
    one = (np.array([1.0, 2.0, 5.0]), np.array([3.0, 4.0, 9.0]))
    none = (np.zeros(0), np.zeros(0))
    for curves in ([one], [one, none]):
        merged = band(curves)
        assert [each.tolist() for each in (merged.x, merged.middle, merged.low, merged.high)] == [
            [1, 2, 5], *[[3, 4, 9]] * 3
        ]  # fmt: skip
    later = (np.array([6.0, 7.0]), np.array([0.0, 0.0]))
    assert band([one, later]).x.size == band([none]).x.size == band([]).x.size == 0
    touching = (np.array([5.0, 7.0]), np.array([1.0, 0.0]))
    assert band([one, touching]).middle.tolist() == [5]


def test_the_seconds_of_a_run_that_was_resumed_are_those_of_its_summary(tmp_path):
    """The sum over its updates, without the time between, is what the run itself has counted."""
    flags = {**TINY, "run_dir": str(tmp_path / "run")}
    train(Config(**flags), verbose=False)
    longer = train(Config(**{**flags, "total_timesteps": 2 * TINY["total_timesteps"], "resume": True}), verbose=False)
    assert longer.summary["resumes"] == 1
    seconds = training_seconds(longer)
    assert len(seconds) == longer.summary["updates"]
    assert seconds[-1] == pytest.approx(longer.summary["train_seconds"], rel=1e-9)
