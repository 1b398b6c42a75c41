"""Where the time went: parts that add up, and rollouts beside updates that need not."""

from __future__ import annotations

import pytest

from fabric_ppo.tools.report.runs import read_runs
from fabric_ppo.tools.report.times import times_of
from tests.fixtures.run_folders import columns, write_run


def test_the_parts_add_up_to_the_time_of_the_run(tmp_path):
    """Updates of one second: half of it a rollout, a quarter an update; three seconds around all of them."""
    times = times_of(read_runs([write_run(tmp_path / "run", columns(9))]))
    assert {part.kind: part.seconds for part in times.parts} == pytest.approx(
        {"rollout": 4.5, "update": 2.25, "other": 2.25, "around": 3.0}
    )
    assert sum(part.share for part in times.parts) == pytest.approx(1)
    assert not times.is_overlapping


def test_what_runs_side_by_side_is_not_added_up(tmp_path):
    side_by_side = {"Time/rollout_seconds": [0.9] * 9, "Time/update_seconds": [0.8] * 9}
    times = times_of(read_runs([write_run(tmp_path / "run", columns(9, **side_by_side))]))
    assert times.is_overlapping
    assert {part.kind: round(part.share, 3) for part in times.parts} == {
        "rollout": 0.675,
        "update": 0.6,
        "around": 0.25,
    }


def test_without_times_there_are_none(tmp_path):
    bare = {name: values for name, values in columns(3).items() if not name.startswith("Time/")}
    assert times_of(read_runs([write_run(tmp_path / "run", bare)])) is None


def test_times_of_runs_are_means(tmp_path):
    slow = columns(9, **{"Time/step_per_second": [50.0] * 9})
    runs = read_runs([write_run(tmp_path / "a", columns(9)), write_run(tmp_path / "b", slow, seed=1)])
    other = next(part for part in times_of(runs).parts if part.kind == "other")
    assert other.seconds == pytest.approx((2.25 + 11.25) / 2)
