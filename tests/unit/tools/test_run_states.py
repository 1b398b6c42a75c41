"""A run at a glance: the same figures of the same updates, whatever the run's state."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.cli import main
from fabric_ppo.tools.run_states import read_state
from tests.fixtures.configs import tiny
from tests.fixtures.logged_runs import UPDATE, write_run

LONG, SHORT = 64, 52
"""Updates of a run that has more than 100 episodes by its end, and of a part of it."""
RETURN = ("train_return_mean", "train_return_episodes")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of CartPole, and one that ends earlier, with the same weights after each of its updates."""
    folder = tmp_path_factory.mktemp("trained")
    for updates in (3, SHORT, LONG):
        flags = tiny(total_timesteps=64 * updates, anneal_lr=False, run_dir=str(folder / f"{updates}"), seed=2)
        train(Config(**flags), verbose=False)
    return folder


def state_at(run):
    state = read_state(RunResult(run), "run")
    return tuple(getattr(state, name) for name in RETURN)


def cut(trained, into, updates, name=f"{LONG}"):
    """Copy the longer run as a kill after some updates would have left it."""
    shutil.copytree(trained / name, into)
    for path in ("summary.json", "policy.safetensors"):
        (into / path).unlink()
    shutil.rmtree(into / "checkpoints")
    lines = (into / "metrics.jsonl").read_text().splitlines(keepends=True)
    (into / "metrics.jsonl").write_text("".join(lines[:updates]))
    return into


@pytest.mark.parametrize("updates", [3, SHORT, LONG])
def test_a_killed_run_has_the_return_of_one_that_ended_there(trained, tmp_path, updates):
    summary = json.loads((trained / f"{updates}/summary.json").read_text())
    wanted = tuple(summary[name] for name in RETURN)
    assert state_at(trained / f"{updates}") == wanted
    assert state_at(cut(trained, tmp_path / "killed", updates)) == wanted
    assert (wanted[1] == 100) == (updates != 3)


def test_a_failed_run_has_it_too(trained, tmp_path):
    run = cut(trained, tmp_path / "failed", SHORT)
    (run / "failure.txt").write_text("an error")
    assert state_at(run) == state_at(trained / f"{SHORT}")


def test_a_run_without_the_mean_over_100_episodes_has_that_of_an_update_and_no_number_of_episodes(tmp_path):
    assert state_at(write_run(tmp_path / "old", [1.0, 2.5, None])) == (2.5, None)
    # resumed by a version that did not log it
    values = {"Rewards/rew_last_100": [20.0, float("nan"), float("nan")], "Game/episodes": [100.0, 0.0, 0.0]}
    assert state_at(write_run(tmp_path / "mixed", [20.0, 30.0, None], metrics=values)) == (30.0, None)
    assert state_at(write_run(tmp_path / "none", [None])) == (None, None)


def test_runs_marks_a_mean_of_fewer_than_100_episodes(tmp_path, capsys):
    full = {"Rewards/rew_last_100": [5.0, 7.25], "Game/episodes": [60.0, 60.0]}
    few = {"Rewards/rew_last_100": [5.0, 7.5], "Game/episodes": [60.0, 39.0]}
    write_run(tmp_path / "full", [5.0, 9.0], metrics=full)
    write_run(tmp_path / "few", [5.0, 9.0], metrics=few)
    write_run(tmp_path / "old", [5.0, 9.0])
    write_run(tmp_path / "done", [5.0, 9.0], test=[1.0])
    assert main(["runs", str(tmp_path)]) == 0
    caught = capsys.readouterr()
    lines = [line.split() for line in caught.out.splitlines()]
    at = lines[0].index("return")
    assert {line[0]: line[at] for line in lines[1:]} == {"full": "7.25", "few": "7.50*", "old": "9.00*", "done": "9.00"}
    assert caught.err.splitlines() == [
        "note: * is the mean of fewer than 100 training episodes; --json has their number in train_return_episodes"
    ]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "of one update"),
        ({"Rewards/rew_last_100": [3.0], "Game/episodes": [1.0]}, "of 1 episode"),
        ({"Rewards/rew_last_100": [3.0], "Game/episodes": [99.0]}, "of 99 episodes"),
        ({"Rewards/rew_last_100": [3.0], "Game/episodes": [100.0]}, None),
    ],
)
def test_compare_has_an_interval_of_means_over_100_episodes_only(tmp_path, capsys, metrics, words):
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", [3.0], metrics=metrics, seed=seed)
    assert main(["compare", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (group,) = found["groups"]
    assert (group["train_return"]["low"] is None) == (words is not None)
    assert group["train_return"]["value"] == 3.0
    assert any("training return" in line for line in found["notes"]) == (words is not None)
    assert main(["compare", str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("training"))
    assert " ".join(line.split()).replace("_", " ").endswith(f"3.00 {words}" if words else "[3.00,3.00]")


def test_figures_count_the_updates_that_were_logged(tmp_path):
    state = read_state(RunResult(write_run(tmp_path / "run", [1.0, 2.0])), "run")
    assert (state.updates, state.env_steps) == (2, 2 * UPDATE)


RESULTS = ("summary.json", "policy.safetensors")


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
@pytest.mark.parametrize("name", RESULTS)
def test_a_done_run_that_lacks_a_result_is_done_and_every_command_names_it(trained, tmp_path, capsys, name, how):
    run = shutil.copytree(trained / f"{SHORT}", tmp_path / "run")
    whole = read_state(RunResult(run), "run")
    damage(run / name, how)
    state = read_state(RunResult(run), "run")
    words = {"missing": "is missing"}.get(how, "cannot be read" if name == "summary.json" else "is damaged")
    problem = f"{name} {words}; --resume writes it again"
    assert (state.state, state.problems) == ("done", (problem,))
    figures = ("updates", "progress", "env_steps", *RETURN)
    assert [getattr(state, each) for each in figures] == [getattr(whole, each) for each in figures]
    assert main(["runs", str(tmp_path)]) == 0
    assert f"warning: {run}: {problem}\n" in capsys.readouterr().err
    assert main(["compare", str(tmp_path)]) == 0
    caught = capsys.readouterr()
    assert f"note: {run}: {problem}\n" in caught.err
    assert "stopped" not in caught.out + caught.err
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert problem in page
    assert ">not finished<" not in page
    assert "before its end" not in page
    test = json.loads((trained / f"{SHORT}/summary.json").read_text())["test"]
    assert (state.test_return_mean == test["return_mean"]) == (name != "summary.json")


def test_a_run_that_lacks_both_results_after_its_last_update_is_to_be_resumed(trained, tmp_path, capsys):
    run = shutil.copytree(trained / f"{SHORT}", tmp_path / "run")
    for name in RESULTS:
        (run / name).unlink()
    state = read_state(RunResult(run), "run")
    problem = "all updates are made, but summary.json and policy.safetensors are missing; --resume writes them"
    assert (state.state, state.problems) == ("stopped", (problem,))
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert problem in (tmp_path / "page.html").read_text()


def test_what_a_result_lacks_is_not_promised_where_no_checkpoint_is_left(trained, tmp_path):
    run = shutil.copytree(trained / f"{SHORT}", tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    (run / "policy.safetensors").unlink()
    assert read_state(RunResult(run), "run").problems == ("policy.safetensors is missing",)


@pytest.mark.parametrize("text", ["{}", '{"env_steps": 3}', '{"updates": -1}', '{"updates": "3"}', '{"updates": NaN}'])
def test_a_summary_without_a_number_of_updates_is_none(trained, tmp_path, text):
    run = shutil.copytree(trained / f"{SHORT}", tmp_path / "run")
    (run / "summary.json").write_text(text)
    state = read_state(RunResult(run), "run")
    assert (state.state, state.updates) == ("done", SHORT)
    assert state.problems == ("summary.json cannot be read; --resume writes it again",)


def test_a_run_that_was_killed_has_no_results_to_miss(trained, tmp_path):
    state = read_state(RunResult(cut(trained, tmp_path / "killed", 3)), "run")
    assert (state.state, state.problems) == ("stopped", ())


def test_python_has_the_summary_of_a_run_without_its_policy(trained, tmp_path, capsys):
    run = shutil.copytree(trained / f"{SHORT}", tmp_path / "run")
    (run / "policy.safetensors").unlink()
    result = RunResult(run)
    assert result.is_finished
    assert result.summary["updates"] == SHORT
    assert result.agent.act(np.zeros(4, np.float32)) in (0, 1)
    assert f"{run}: policy.safetensors is missing: the policy is that of its newest" in capsys.readouterr().err
