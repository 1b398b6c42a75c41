"""A trial at work: seeds one after the other, from where it was, and what the pruner is shown."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from fabric_ppo.config import TorchConfig
from fabric_ppo.tools.sweep import job as job_module
from fabric_ppo.tools.sweep.job import Job, mean_at, objective
from fabric_ppo.tools.sweep.runs import Report
from fabric_ppo.tools.sweep.study import EVALUATIONS, RETURNS, Sweep
from tests.fixtures.sweeps import SPACE, settings, storage_url

pytest.importorskip("optuna")


class FakeRun:
    """A run that has begun, and does nothing."""

    def __init__(self, folder, flags, seed, num_threads):
        self.folder, self.flags, self.seed, self.num_threads = folder, flags, seed, num_threads


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "Run", FakeRun)
    return Sweep(settings(storage_url("sqlite", tmp_path), seeds=3, pruner="median"), SPACE, tmp_path)


def finish(job, score):
    """End the present run with this return in its test."""
    job.run.folder.mkdir(parents=True)
    (job.run.folder / "summary.json").write_text(json.dumps({"test": {"return_mean": score}}))


def test_seeds_are_trained_one_after_the_other_and_the_value_is_their_mean(sweep, tmp_path):
    job = Job(sweep, sweep.next_trial(), 2)
    for seed, score in enumerate([1.0, 2.0, 6.0], 1):
        assert job.go_on() is None
        assert (job.run.seed, job.run.num_threads) == (seed, 2)
        assert job.run.folder == tmp_path / "trials" / "0" / f"seed_{seed}"
        finish(job, score)
    assert job.go_on() == 3.0
    assert sweep.trials()[0].user_attrs[RETURNS] == [1.0, 2.0, 6.0]


def test_the_flags_are_those_of_the_trial(sweep, tmp_path):
    trial = sweep.next_trial()
    job = Job(sweep, trial, None)
    job.go_on()
    flags = yaml.safe_load(job.run.flags.read_text())
    assert flags["learning_rate"] == trial.params["learning_rate"]
    assert flags["hidden_sizes"] == json.loads(trial.params["hidden_sizes"])
    updates = 4096 // (2 * trial.params["num_steps"])
    assert 5 <= updates // flags["eval_every"] <= 10  # evaluations of a run
    TorchConfig(**flags)


def test_a_trial_goes_on_with_the_seed_that_it_was_at(sweep):
    trial = sweep.next_trial()
    first = Job(sweep, trial, None)
    first.go_on()
    finish(first, 1.0)
    first.go_on()
    finish(first, 5.0)  # and killed before anybody has seen that
    again = Job(sweep, sweep.trials()[0], None)
    assert again.go_on() is None
    assert again.run.seed == 3
    finish(again, 0.0)
    assert again.go_on() == 2.0


def test_a_run_that_is_killed_each_time_is_given_up(sweep):
    job = Job(sweep, sweep.next_trial(), None)
    tries = 0
    while job.may_start_again():
        job.go_on()
        tries += 1
    assert tries == 4
    finish(job, 1.0)
    job.go_on()
    assert job.may_start_again()  # the next seed's


def test_the_pruner_sees_means_over_the_seeds_so_far(sweep):
    """At a step of the second seed: the mean of both at this fraction of their training."""
    job = Job(sweep, sweep.next_trial(), None)
    job.go_on()
    for update, value in ((1, 9.0), (2, 1.0), (3, 8.0), (10, 3.0), (20, 5.0)):  # the first is before a tenth
        job.take(Report(update, 20, value))
    finish(job, 0.0)
    job.go_on()
    for update, value in ((2, 3.0), (10, 4.0), (20, 6.0)):
        job.take(Report(update, 20, value))
    (trial,) = sweep.trials()
    assert trial.intermediate_values == {1: 1.0, 5: 3.0, 10: 5.0, 11: 2.0, 15: 3.5, 20: 5.5}
    assert trial.user_attrs[EVALUATIONS] == {
        "0": {"1": 1.0, "5": 3.0, "10": 5.0},
        "1": {"1": 3.0, "5": 4.0, "10": 6.0},
    }


def test_what_is_pruned_has_ended_before_its_run_knows(sweep, monkeypatch):
    job = Job(sweep, sweep.next_trial(), None)
    job.go_on()
    monkeypatch.setattr(sweep, "should_prune", lambda number, step, value: step == 4)
    job.take(Report(6, 20, 1.0))
    assert not job.is_pruned
    job.take(Report(8, 20, 1.0))
    assert job.is_pruned
    assert sweep.trials()[0].state.name == "PRUNED"


def test_of_a_seed_that_has_ended_early_the_last_evaluation_counts():
    assert mean_at({"0": {"2": 1.0, "3": 5.0}, "1": {"2": 3.0, "8": 7.0}}, 8) == 6.0


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_values_are_means_and_interquartile_means(count):
    """Without a quarter at each end, rounded down."""
    scores = np.random.default_rng(count).normal(size=count).tolist()
    cut = count // 4
    inner = sorted(scores)[cut : count - cut]
    assert objective("mean", scores) == pytest.approx(sum(scores) / count)
    assert objective("iqm", scores) == pytest.approx(sum(inner) / len(inner))
