"""Results of a report: the scale of test returns, and scores of groups."""

from __future__ import annotations

import pytest

from fabric_ppo.process.console import format_number
from fabric_ppo.tools.report.results import group_score, scale, scores
from fabric_ppo.tools.report.runs import read_runs
from fabric_ppo.tools.scores import interquartile_mean, interval
from tests.fixtures.run_folders import columns, write_run


def runs_of(folder, *returns):
    return read_runs([write_run(folder / str(i), columns(2), each, seed=i) for i, each in enumerate(returns)])


@pytest.mark.parametrize("value", [-500.0, 0.0, 500.0, 1e12])
def test_equal_returns_are_in_the_middle_of_their_scale(tmp_path, value):
    runs = runs_of(tmp_path, [value] * 3, [value * (1 + 1e-12)])
    assert [score.places for score in scores(runs)] == [[50.0] * 3, [50.0]]
    assert [score.mean for score in scores(runs)] == [50.0, 50.0]
    assert len(scale(runs)) == 1


def test_a_scale_has_its_ends(tmp_path):
    runs = runs_of(tmp_path, [-10.0, 0.0], [30.0])
    assert scale(runs) == ["-10.0", "30.0"]
    assert [score.places for score in scores(runs)] == [[0.0, 25.0], [100.0]]


def test_one_run_has_no_interval_and_promises_none(tmp_path):
    (run,) = runs_of(tmp_path, [-500.0, -400.0])
    assert group_score([run]) == ("mean test return of one run", "-450.0")


def test_several_runs_have_the_interval_of_their_means(tmp_path):
    runs = runs_of(tmp_path, [1.0, 3.0], [5.0], [6.0])
    low, high = interval([2.0, 5.0, 6.0])
    middle = float(interquartile_mean([2.0, 5.0, 6.0]))
    text = f"{format_number(middle)} [{format_number(low)}, {format_number(high)}]"
    assert group_score(runs) == ("interquartile mean of 3 runs [95 %]", text)
