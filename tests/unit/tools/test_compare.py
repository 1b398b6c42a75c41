"""`fabric-ppo compare`, against its definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fabric_ppo.process.errors import BAD_INPUT
from fabric_ppo.tools import scores, tables
from fabric_ppo.tools.cli import main
from tests.fixtures.logged_runs import UPDATE, write_run

TESTS = {0.01: [[10.0, 14.0], [20.0], [30.0], [40.0]], 0.001: [[15.0], [25.0], [35.0], [1.0]]}
"""Learning rate -> returns of the test episodes of runs with seeds from 1 up."""


@pytest.fixture
def suite(tmp_path):
    for rate, tests in TESTS.items():
        for seed, test in enumerate(tests, 1):
            write_run(tmp_path / f"{rate}_{seed}", [1.0, float(seed)], test=test, learning_rate=rate, seed=seed)
    return tmp_path


def compared(capsys, *args):
    assert main(["compare", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_groups_of_seeds_have_the_scores_of_their_definitions(suite, capsys):
    first, second = compared(capsys, suite, "--baseline", "0.01")["groups"]
    assert [each["label"] for each in (first, second)] == ["learning-rate 0.01", "learning-rate 0.001"]
    assert [each["values"] for each in (first, second)] == [{"learning_rate": [0.01]}, {"learning_rate": [0.001]}]
    for each, rate in ((first, 0.01), (second, 0.001)):
        means = [np.mean(test) for test in TESTS[rate]]
        low, high = scores.interval(means)
        value = float(scores.interquartile_mean(means))
        assert each["test_return"] == {"value": value, "low": low, "high": high, "of": "runs", "number": 4}
        assert each["train_return"]["value"] == 2.5
        assert each["seeds"] == [1, 2, 3, 4]
        assert (each["env_steps"], each["steps_per_second"]) == (2 * UPDATE, 512)
        assert each["wall_seconds"] == 2 * UPDATE / 512 + 5
    assert first["improvement"] is None
    # 15 > 12; 25 > 12, 20; 35 > 12, 20, 30; 1 > none
    assert second["improvement"]["value"] == pytest.approx(6 / 16)
    assert second["improvement"]["low"] <= 6 / 16 <= second["improvement"]["high"]


def test_a_single_run_has_the_mean_of_its_test_episodes(suite, capsys):
    two, one = compared(capsys, suite / "0.01_1", suite / "0.001_1")["groups"]
    low, high = scores.interval([10, 14], lambda drawn: drawn.mean(-1))
    assert one["test_return"] == {"value": 12, "low": low, "high": high, "of": "episodes", "number": 2}
    assert two["test_return"] == {"value": 15, "low": None, "high": None, "of": "episodes", "number": 1}
    assert one["improvement"] is None


def test_only_settings_that_differ_are_shown(suite, capsys):
    assert main(["compare", str(suite)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {len(line) for line in lines} == {3}
    rows = {line[0]: line[1:] for line in lines}
    names = ["group", "runs", "seeds", "state", "learning-rate", "test_return", "training_return"]
    assert list(rows) == [*names, "P(better_than_first)", "transitions", "seconds", "steps/s"]
    assert rows["seeds"] == ["1,2,3,4"] * 2
    assert rows["learning-rate"] == ["0.001", "0.01"]
    assert rows["P(better_than_first)"][0] == "-"


def test_runs_are_grouped_by_the_flag_that_is_named(suite, capsys):
    groups = compared(capsys, suite, "--group-by", "seed")["groups"]
    assert [each["label"] for each in groups] == [f"seed {seed}" for seed in (1, 2, 3, 4)]
    assert groups[0]["values"] == {"learning_rate": [0.001, 0.01]}


def test_runs_of_different_environments_are_allowed_and_said(tmp_path, capsys):
    for seed in (1, 2):
        for env_id in ("CartPole-v1", "Acrobot-v1"):
            write_run(tmp_path / f"{env_id}{seed}", [1.0], test=[1.0], env_id=env_id, seed=seed)
    found = compared(capsys, tmp_path)
    assert [each["label"] for each in found["groups"]] == ["Acrobot-v1", "CartPole-v1"]
    assert [each["improvement"] for each in found["groups"]] == [None, None]
    assert found["notes"] == ["different environments: Acrobot-v1, CartPole-v1; their returns are not compared"]


def test_unfinished_and_damaged_runs_are_said_and_left_out_beside_finished_ones(suite, capsys):
    write_run(suite / "0.01_5", [100.0], learning_rate=0.01, seed=5, speed=1.0)
    (suite / "0.01_4/metrics.jsonl").write_text("x")
    write_run(suite / "new", [7.0], learning_rate=1.0)
    found = compared(capsys, suite / "0.01_*", suite / "new")
    first, new = found["groups"]
    assert (first["train_return"]["value"], first["steps_per_second"], first["test_return"]["number"]) == (2.5, 512, 4)
    assert (new["train_return"]["value"], new["test_return"], new["wall_seconds"]) == (7, None, None)
    assert found["notes"] == [
        f"{suite / '0.01_4'}: metrics.jsonl cannot be read after line 0 of 1",
        f"{suite / '0.01_5'}: stopped, after 1 updates: it is left out of scores, time and speed",
        f"{suite / 'new'}: stopped, after 1 updates: it counts as it is",
        f"{suite / 'new'}: its training return is the mean of one update, not of 100",
    ]


def test_bad_input_is_one_line(suite, capsys):
    (suite / "empty").mkdir()
    for args, problem in (
        ([suite / "empty"], f"{suite / 'empty'}: holds no run; the folder of a run is expected"),
        ([suite, "--group-by", "lr"], "lr: no flag of these runs; one from config.yaml is expected"),
        ([suite, "--group-by", ","], "--group-by ,: names with commas between them are expected"),
        ([], "the following arguments are required: RUN_DIR"),
    ):
        assert main(["compare", *map(str, args)]) == BAD_INPUT
        caught = capsys.readouterr()
        assert (caught.out, caught.err.count("\n")) == ("", 1)
        assert caught.err.startswith(f"error: {problem}")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_on_a_narrow_terminal_the_groups_come_in_parts(suite, capsys, monkeypatch, width):
    monkeypatch.setattr(tables, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["compare", str(suite), "--group-by", "seed,learning-rate"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert out.count("steps/s") > (width == 40) * 7
    assert out.count("512") == 8


def test_an_interval_over_episodes_is_marked(suite, capsys):
    words = [suite / "0.01_1", *(suite / f"0.001_{seed}" for seed in (1, 2))]
    found = compared(capsys, *words)
    note = "learning-rate 0.01: the interval of its test return is over 2 episodes of one run, not over runs"
    assert found["notes"] == [note]
    assert main(["compare", *map(str, words)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test_return")]
    assert line.endswith("_over_2_episodes")
    assert line.count("episode") == 1
    assert compared(capsys, suite / "0.001_1")["notes"] == []
