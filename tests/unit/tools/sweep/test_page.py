"""The page of a sweep: its numbers by definition, its text escaped; the preset beside it."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from fabric_ppo.config import TorchConfig
from fabric_ppo.tools.flags import parse_flags
from fabric_ppo.tools.sweep.page import history, parallel, render, write_page
from fabric_ppo.tools.sweep.preset import write_preset
from fabric_ppo.tools.sweep.space import Choices, Space
from fabric_ppo.tools.sweep.study import FAILURE, RETURNS, Sweep
from fabric_ppo.tools.sweep.table import completed, importances, row_of
from tests.fixtures.sweeps import SPACE, settings, storage_url

optuna = pytest.importorskip("optuna")


def ended_sweep(folder, count=14, space=SPACE, **others):
    """A sweep whose value is minus the distance of the learning rate from 1e-3; one pruned, one failed."""
    sweep = Sweep(settings(storage_url("sqlite", folder), trials=count, **others), space, folder)
    for number in range(count):
        trial = sweep.next_trial()
        if number == 3:
            sweep.should_prune(number, 4, -7.0)
            sweep.end(number, "PRUNED")
        elif number == 5:
            sweep.note(number, FAILURE, "<script>alert(1)</script> & more")
            sweep.end(number, "FAIL")
        else:
            value = -abs(math.log10(trial.params["learning_rate"]) + 3)
            sweep.note(number, RETURNS, [value - 0.5, value + 0.5])
            sweep.end(number, "COMPLETE", value)
    return sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return ended_sweep(tmp_path_factory.mktemp("sweep"))


def test_the_history_is_of_all_trials_with_the_best_so_far(sweep):
    found = history(sweep.trials())
    values = [trial.value if trial.state.name == "COMPLETE" else None for trial in sweep.trials()]
    assert found["number"] == list(range(14))
    assert found["value"] == values
    assert found["pruned"] == [-7.0 if number == 3 else None for number in range(14)]
    assert found["best"] == [max(v for v in values[: k + 1] if v is not None) for k in range(14)]
    assert history(sweep.trials()[3:4])["best"] == [None]


def test_the_best_come_first_with_their_seeds_and_an_interval(sweep):
    ranked = completed(sweep.trials())
    assert [trial.value for trial in ranked] == sorted((trial.value for trial in ranked), reverse=True)
    row = row_of(ranked[0], sweep)
    # of two runs the bootstrap's means are both lowest, mixed, or both highest: a quarter, a half, a quarter
    low, high = (float(each) for each in row.interval.strip("[]").split(", "))
    assert (low, high) == pytest.approx((ranked[0].value - 0.5, ranked[0].value + 0.5), abs=0.01)
    assert len(row.params) == len(SPACE.searched)


def test_importances_are_optunas_and_find_the_flag_that_matters(tmp_path):
    sweep = ended_sweep(tmp_path, count=40)
    found = importances(sweep)
    assert max(found, key=found.get) == "learning_rate"
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    assert found == optuna.importance.get_param_importances(sweep.study(), evaluator=evaluator)


def test_few_or_equal_trials_have_no_importances(tmp_path):
    assert importances(ended_sweep(tmp_path, count=21)) == {}


def test_places_on_the_axes_are_those_of_their_scales(sweep):
    ranked = completed(sweep.trials())
    axes, lines = parallel(ranked, SPACE)
    assert [axis.name for axis in axes] == [*SPACE.searched, "value"]
    assert len(lines) == 12
    points = [[float(each.split(",")[1]) for each in line.points.split()] for line in lines]
    values = [trial.value for trial in ranked]
    for trial, tops in zip(ranked[::-1], points, strict=True):
        expected = [
            100 * (1 - (math.log10(trial.params["learning_rate"]) + 4) / 2),
            100 * (1 - (trial.params["num_steps"] - 32) / 96),
            100 * (1 - (trial.params["gamma"] - 0.9) / 0.09),
            {"[8]": 75, "[16, 16]": 25}[trial.params["hidden_sizes"]],
            100 * (max(values) - trial.value) / (max(values) - min(values)),
        ]
        np.testing.assert_allclose(tops, expected, atol=0.01)
    assert [line.level for line in lines[-3:]] == ["", "good", "best"]


def test_the_page_needs_nothing_else_and_all_text_is_escaped(tmp_path):
    evil = 'C:</script><img src=x onerror="alert(1)">'
    space = Space(SPACE.fixed | {"track_group": evil}, SPACE.searched | {"env_kwargs": Choices((None, '{"a": "<b>"}'))})
    text = render(ended_sweep(tmp_path, space=space))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text
    assert "<b>&#34;" not in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert len(data["number"]) == 14


def test_a_sweep_that_has_just_begun_has_a_page_and_no_preset(tmp_path):
    sweep = Sweep(settings(storage_url("sqlite", tmp_path)), SPACE, tmp_path)
    sweep.next_trial()
    write_page(sweep)
    write_preset(sweep)
    text = (tmp_path / "sweep.html").read_text()
    assert "The search is not over" in text
    assert "No trial has a value yet" in text
    assert not (tmp_path / "best.yaml").exists()


def test_the_preset_is_taken_by_config(sweep, no_launcher):
    write_preset(sweep)
    best = completed(sweep.trials())[0]
    path = sweep.folder / "best.yaml"
    config = dataclasses.replace(parse_flags(TorchConfig, ["--config", str(path)]), config=None)
    assert config == TorchConfig(
        env_id="CartPole-v1",
        total_timesteps=4096,
        test_episodes=1,
        learning_rate=best.params["learning_rate"],
        num_steps=best.params["num_steps"],
        gamma=best.params["gamma"],
        hidden_sizes=tuple(json.loads(best.params["hidden_sizes"])),
    )
    first, second, third = path.read_text().splitlines()[:3]
    assert f"the best of 14 trials, number {best.number}," in first
    assert "--pruner none --seed 0" in second
    assert third.startswith("# mean of final tests over 2 seeds: ")
