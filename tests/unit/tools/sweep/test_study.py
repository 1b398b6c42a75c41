"""Trials of a study: each is one worker's, exactly as many as asked for, sampled and pruned as Optuna does."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.sweep import study as study_module
from fabric_ppo.tools.sweep.space import Space
from fabric_ppo.tools.sweep.study import ALIVE, STEPS, Sweep, step_of
from tests.fixtures.sweeps import SPACE, settings, storage_url

optuna = pytest.importorskip("optuna")


@pytest.fixture(params=["sqlite", "journal"])
def url(request, tmp_path):
    return storage_url(request.param, tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test moves on; nobody sleeps."""
    now = [0.0]
    monkeypatch.setattr(study_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(study_module.time, "sleep", lambda _: None)
    return now


def worker(url, folder, **others):
    return Sweep(settings(url, **others), SPACE, folder)


def test_two_workers_share_the_trials_and_none_is_had_twice(url, tmp_path):
    workers = [worker(url, tmp_path / name) for name in ("a", "b")]
    numbers = [[], []]
    for turn in range(14):
        trial = workers[turn % 2].next_trial()
        if trial is not None:
            numbers[turn % 2].append(trial.number)
    assert numbers == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert not workers[0].is_over()
    for each, own in zip(workers, numbers, strict=True):
        for number in own:
            each.end(number, "COMPLETE", float(number))
    assert [trial.value for trial in workers[0].finished()] == list(range(10))
    assert all(each.is_over() for each in workers)


def test_a_trial_too_many_is_none(url, tmp_path, monkeypatch):
    """Two workers may both see that one is left, and both make it."""
    first, second = (worker(url, tmp_path / name, trials=1) for name in ("a", "b"))
    read = Sweep.trials
    monkeypatch.setattr(first, "trials", lambda: [])
    assert first.next_trial().number == 0
    before = [[]]  # at first as before the other one made it
    monkeypatch.setattr(second, "trials", lambda: before.pop() if before else read(second))
    assert second.next_trial() is None
    monkeypatch.undo()
    first.end(0, "FAIL")
    assert [trial.number for trial in second.trials()] == [0]
    assert second.is_over()
    more = worker(url, tmp_path / "c", trials=2)
    assert more.next_trial().number == 2


def test_a_worker_that_was_killed_has_its_trials_again_at_once(url, tmp_path):
    own = settings(url)
    before = Sweep(own, SPACE, tmp_path)
    first, second = before.next_trial(), before.next_trial()
    before.end(second.number, "COMPLETE", 1.0)
    after = Sweep(own, SPACE, tmp_path)
    assert after.next_trial() == first
    assert after.next_trial().number == 2


def test_a_trial_whose_values_were_being_chosen_gets_the_rest(url, tmp_path, monkeypatch):
    own = settings(url)
    chosen, suggest = [], study_module.suggest

    def killed(trial, name, search):
        if len(chosen) == 2:
            raise KeyboardInterrupt
        suggest(trial, name, search)
        chosen.append(trial.params[name])

    monkeypatch.setattr(study_module, "suggest", killed)
    with pytest.raises(KeyboardInterrupt):
        Sweep(own, SPACE, tmp_path).next_trial()
    monkeypatch.undo()
    again = Sweep(own, SPACE, tmp_path)
    assert list(again.trials()[0].params.values()) == chosen
    params = again.next_trial().params
    assert [params[name] for name in list(SPACE.searched)[:2]] == chosen
    assert params.keys() == SPACE.searched.keys()
    assert len(again.trials()) == 1


def test_a_trial_of_a_silent_worker_is_taken_up_and_its_worker_notices(url, tmp_path, clock):
    dead, heir = (worker(url, tmp_path / name, trials=1, lost_after=100.0) for name in ("a", "b"))
    assert dead.next_trial().number == 0
    assert heir.next_trial() is None  # looks for the first time
    clock[0] = 99
    assert heir.next_trial() is None
    assert dead.still_mine() == {0}  # a sign of life
    clock[0] = 198
    assert heir.next_trial() is None
    clock[0] = 297
    assert heir.next_trial() is None
    clock[0] = 298
    assert heir.next_trial().number == 0
    assert dead.still_mine() == set()
    assert dead.next_trial() is None
    assert heir.still_mine() == {0}
    heir.end(0, "COMPLETE", 3.0)
    dead.end(0, "FAIL")  # comes too late
    assert [(trial.state.name, trial.value) for trial in heir.trials()] == [("COMPLETE", 3.0)]


def test_of_two_who_take_up_a_trial_one_has_it(url, tmp_path, clock, monkeypatch):
    dead, slow, quick = (worker(url, tmp_path / name, trials=1) for name in "abc")
    dead.next_trial()
    assert slow.next_trial() is quick.next_trial() is None
    clock[0] = 1000
    found = []

    def both(_):  # while the first waits, the other writes, too
        monkeypatch.setattr(study_module.time, "sleep", lambda _: None)
        found.append(slow._take_up(slow.trials()[0]))

    monkeypatch.setattr(study_module.time, "sleep", both)
    assert quick.next_trial() is None
    assert found == [True]


def test_a_trial_whose_run_still_trains_is_not_lost(url, tmp_path, clock, monkeypatch):
    dead, heir = (worker(url, tmp_path / name, trials=1) for name in "ab")
    trial = dead.next_trial()
    (tmp_path / "a" / "trials" / "0" / "seed_1").mkdir(parents=True)
    assert trial.user_attrs["folder"] == str(tmp_path / "a" / "trials" / "0")
    heir.next_trial()
    clock[0] = 1000
    monkeypatch.setattr(study_module, "is_locked", lambda folder: folder.name == "seed_1")
    assert heir.next_trial() is None
    monkeypatch.setattr(study_module, "is_locked", lambda folder: False)
    assert heir.next_trial().user_attrs["folder"] == trial.user_attrs["folder"]


@pytest.mark.parametrize("count", [3, 14])
def test_values_are_those_of_optunas_sampler(url, tmp_path, count):
    """A study in memory with the same past, asked with the sampler of the same seed."""
    sweep = worker(url, tmp_path, trials=count + 1)
    for number in range(count):
        params = sweep.next_trial().params
        sweep.end(number, "COMPLETE", params["gamma"] - 100 * params["learning_rate"])
    own = optuna.create_study(direction="maximize")
    own.add_trials(sweep.finished())
    seed = study_module._draws(0, count)
    own.sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
    distributions = {
        "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "num_steps": optuna.distributions.IntDistribution(32, 128, step=32),
        "gamma": optuna.distributions.FloatDistribution(0.9, 0.99),
        "hidden_sizes": optuna.distributions.CategoricalDistribution(["[8]", "[16, 16]"]),
    }
    assert sweep.next_trial().params == own.ask(distributions).params


def test_trials_at_the_same_time_are_different(url, tmp_path):
    workers = [worker(url, tmp_path / name) for name in ("a", "b")]
    params = [str(workers[turn % 2].next_trial().params) for turn in range(10)]
    assert len(set(params)) == 10


def test_steps_go_on_from_seed_to_seed():
    assert [step_of(0, update, 20) for update in (1, 2, 3, 4, 20)] == [0, 1, 1, 2, 10]
    assert [step_of(2, update, 7) for update in (1, 7)] == [21, 30]


def test_the_median_pruner_prunes_what_is_below_the_median(url, tmp_path):
    """Of five trials that have ended; none before three tenths of the first seed."""
    sweep = worker(url, tmp_path, pruner="median", trials=20)
    past = [1.0, 2.0, 3.0, 4.0, 5.0]
    for value in past:
        number = sweep.next_trial().number
        for step in range(1, 2 * STEPS + 1):
            assert not sweep.should_prune(number, step, value)
        sweep.end(number, "COMPLETE", value)
    for value in (2.9, 3.1):
        number = sweep.next_trial().number
        assert [sweep.should_prune(number, step, value) for step in (1, 2)] == [False, False]
        assert sweep.should_prune(number, 4, value) == (value < statistics.median(past))
        sweep.end(number, "PRUNED" if value < 3 else "COMPLETE", value)
    pruned = sweep.trials()[5]
    assert (pruned.state.name, pruned.value, max(pruned.intermediate_values)) == ("PRUNED", 2.9, 4)


def test_hyperband_ends_trials_and_none_does_not(url, tmp_path):
    """Trials that are worse and worse: some of them are pruned, none without a pruner."""
    pruned = {}
    for pruner in ("hyperband", "none"):
        sweep = worker(url, tmp_path, pruner=pruner, study=pruner, trials=20)
        verdicts = []
        for value in range(20, 0, -1):
            number = sweep.next_trial().number
            verdicts.append(any(sweep.should_prune(number, step, value) for step in range(1, 2 * STEPS + 1)))
            sweep.end(number, "PRUNED" if verdicts[-1] else "COMPLETE", float(value))
        pruned[pruner] = sum(verdicts)
    assert 0 < pruned["hyperband"] < 20
    assert pruned["none"] == 0


def test_an_evaluation_that_is_seen_again_counts_once(url, tmp_path):
    own = settings(url)
    sweep = Sweep(own, SPACE, tmp_path)
    sweep.next_trial()
    sweep.should_prune(0, 3, 1.5)
    again = Sweep(own, SPACE, tmp_path)
    again.next_trial()
    again.should_prune(0, 3, 1.5)
    assert again.trials()[0].intermediate_values == {3: 1.5}


@pytest.mark.parametrize(
    "change", [{"seeds": 5}, {"objective": "iqm"}, {"pruner": "median"}, {"seed": 7}, {"space": 0}]
)
def test_a_study_of_other_settings_is_not_joined(url, tmp_path, change):
    worker(url, tmp_path)
    space = Space({**SPACE.fixed, "gae_lambda": 0.5}, SPACE.searched) if "space" in change else SPACE
    others = {name: value for name, value in change.items() if name != "space"}
    with pytest.raises(ConfigError, match=f"its study study has another {next(iter(change))}; the same"):
        Sweep(settings(url, **others), space, tmp_path)
    Sweep(dataclasses.replace(settings(url, **others), study="another"), space, tmp_path)


def test_a_trial_is_its_workers_from_the_first_moment_on(url, tmp_path, monkeypatch):
    """Whenever the worker is killed: a trial of nobody would have to wait."""
    seen = []
    own = settings(url)
    sweep = Sweep(own, SPACE, tmp_path)
    made = sweep._storage.create_new_trial

    def create(*args, **kwargs):
        trial_id = made(*args, **kwargs)
        seen.append(sweep._storage.get_trial(trial_id).user_attrs[ALIVE])
        return trial_id

    monkeypatch.setattr(sweep._storage, "create_new_trial", create)
    sweep.next_trial()
    assert seen == [[own.worker, 0]]
