"""Whole runs in environments with habits: one at a time, endless, failing in tests or in closing, on the move."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo import load_agent
from fabric_ppo.envs import episodes
from fabric_ppo.rollouts.evaluate import evaluate
from tests.fixtures import habit_envs
from tests.fixtures.habit_envs import env_id
from tests.fixtures.launching import in_fork, printed_in_fork
from tests.fixtures.parts import outcome
from tests.fixtures.resuming import assert_same_run, checkpoints, finish, summary, train


def score_in_gymnasium_alone(kind, action):
    env = gymnasium.make(env_id(kind))
    env.reset(seed=0)
    score, ended = 0.0, False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(action)
        score, ended = score + float(reward), terminated or truncated
    return score


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_world_of_somebodys_own_stays(tmp_path, backend):
    """Its rewards do not depend on actions: training, test and Gymnasium alone must agree."""
    kind = habit_envs.KeepsWorld
    finish("torch", 1, tmp_path / "run", env_id=env_id(kind), env_backend=backend)
    done, expected = summary(tmp_path / "run"), score_in_gymnasium_alone(kind, 0)
    assert expected == habit_envs.STEPS
    assert (done["train_return_mean"], done["test"]["return_mean"]) == (expected, expected)


@pytest.mark.parametrize("script", ["torch", "fabric", "decoupled"])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_one_instance_is_enough(tmp_path, monkeypatch, script, backend):
    """Train, test several episodes, resume: with --num-envs 1 a second one is never opened."""
    monkeypatch.setenv("ALONE_LOG", str(tmp_path / "log"))
    flags = {
        "env_id": env_id(habit_envs.Alone),
        "env_backend": backend,
        "num_envs": 1,
        "test_episodes": 3,
        "anneal_lr": False,
    }
    size = 2 if script == "decoupled" else 1
    alone = finish(script, size, tmp_path / "alone", **flags)
    run_dir = finish(script, size, tmp_path / "run", updates=3, **flags)
    finish(script, size, run_dir, resume=True, **flags)
    assert not (tmp_path / "log").exists()
    assert summary(run_dir)["test"] == summary(alone)["test"]
    assert (run_dir / "policy.safetensors").read_bytes() == (alone / "policy.safetensors").read_bytes()


def test_an_evaluation_plays_with_the_one_that_there_can_be(tmp_path, monkeypatch):
    monkeypatch.setenv("ALONE_LOG", str(tmp_path / "log"))
    flags = {"env_id": env_id(habit_envs.Alone), "num_envs": 1}
    agent = load_agent(finish("torch", 1, tmp_path / "run", **flags))
    assert len(in_fork(evaluate, agent, 3, 0).returns) == 3


def test_environments_may_share_the_array_that_they_return(tmp_path):
    """The score is the same however many play at once."""
    flags = {"env_id": env_id(habit_envs.SharesMemory), "num_steps": 64, "per_rank_batch_size": 32, "num_envs": 4}
    agent = load_agent(finish("torch", 1, tmp_path / "run", updates=20, update_epochs=10, **flags))
    results = [evaluate(agent, 8, 0, at_once=number) for number in (1, 3, 8)]
    assert results[0] == results[1] == results[2]
    assert np.mean(results[0].returns) > 0.9 * habit_envs.STEPS


@pytest.mark.parametrize("kind", [habit_envs.NeverEnds, habit_envs.Waits])
def test_an_episode_without_end_is_cut_off_and_counted(tmp_path, kind):
    """In the test and in evaluations; a policy that always waits is made of no training at all."""
    flags = {"env_id": env_id(kind), "test_step_limit": 50, "test_episodes": 3, "eval_every": 2, "eval_episodes": 2}
    flags |= {"learning_rate": 1e-30}
    ended, out, err = printed_in_fork(outcome, tmp_path / "run", 2, flags)
    assert ended == ""
    test = summary(tmp_path / "run")["test"]
    lengths = [50.0] * test["cut_off"]
    if kind is habit_envs.NeverEnds:
        assert (test["cut_off"], test["returns"], test["length_mean"]) == (3, lengths, 50.0)
    if test["cut_off"]:
        assert f"warning: test: {test['cut_off']} of 3 episodes did not end, and were cut off after 50 steps" in err
        assert f"over 3 episodes, {test['cut_off']} of them cut off" in out


def test_no_test_is_a_test_of_no_episodes(tmp_path):
    ended, out, _ = printed_in_fork(outcome, tmp_path / "run", 2, {"test_episodes": 0, "capture_video": False})
    assert ended == ""
    assert "tested" not in out
    test = summary(tmp_path / "run")["test"]
    assert (test["episodes"], test["return_mean"], test["returns"]) == (0, None, [])


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (habit_envs.CloseRaises, "RuntimeError: video system not initialized"),
        (habit_envs.CloseExits, "SystemExit: 4"),
    ],
)
def test_closing_that_fails_costs_nothing(tmp_path, backend, kind, why):
    """A warning, once, for training and for the test; results and status stay."""
    flags = {"env_id": env_id(kind), "env_backend": backend, "num_envs": 3, "test_episodes": 3}
    ended, _, err = printed_in_fork(outcome, tmp_path / "run", 2, flags)
    assert ended == ""
    assert summary(tmp_path / "run")["test"]["episodes"] == 3
    assert err.count(f"warning: {env_id(kind)}: close raised {why}\n") == 2
    assert "Traceback" not in err


def test_a_change_of_directory_moves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"env_id": env_id(habit_envs.Walks), "anneal_lr": False}
    alone = finish("torch", 1, "alone", **flags).absolute()
    finish("torch", 1, "run", updates=3, **flags)
    finish("torch", 1, "run", resume=True, **flags)
    assert_same_run(tmp_path / "run", alone, resumes=1)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_may_use_gradients(tmp_path, backend):
    finish("torch", 1, tmp_path / "run", env_id=env_id(habit_envs.Learns), env_backend=backend)
    # the gradient of (0 - action)^2 at 0 is -2 action
    assert summary(tmp_path / "run")["train_return_mean"] <= 0


@pytest.mark.parametrize("script", ["torch", "fabric", "decoupled"])
def test_pytorchs_settings_are_not_the_environments(tmp_path, script):
    """An environment that turns every switch trains to the same bits as one that turns none."""
    size = 2 if script == "decoupled" else 1
    flags = {"eval_every": 2, "eval_episodes": 1}
    runs = [
        finish(script, size, tmp_path / kind.__name__, env_id=env_id(kind), **flags)
        for kind in (habit_envs.Ten, habit_envs.TurnsSwitches)
    ]
    weights = [load_agent(run)._agent.state_dict() for run in runs]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_update_is_saved_before_an_evaluation_that_fails(tmp_path, monkeypatch):
    """And the run goes on from it once the environment works again."""
    broken = tmp_path / "broken"
    broken.touch()
    monkeypatch.setenv("BROKEN", str(broken))
    flags = {"env_id": env_id(habit_envs.FailsInTests), "eval_every": 3}
    (error,) = train("torch", 1, tmp_path / "run", **flags)
    assert "boom" in error
    assert checkpoints(tmp_path / "run")[0] == 3
    broken.unlink()
    finish("torch", 1, tmp_path / "run", resume=True, **flags)
    alone = finish("torch", 1, tmp_path / "alone", **flags)
    assert (alone / "policy.safetensors").read_bytes() == (tmp_path / "run/policy.safetensors").read_bytes()


def test_draws_from_an_environments_own_space_are_noticed(tmp_path, capfd):
    flags = {"env_id": env_id(habit_envs.DrawsFromItsSpace)}
    finish("torch", 1, tmp_path / "run", updates=3, **flags)
    finish("torch", 1, tmp_path / "run", resume=True, **flags)
    assert "cannot be resumed exactly" in capfd.readouterr().err
    assert summary(tmp_path / "run")["exact_resume"] is False


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("script", ["torch", "decoupled"])
def test_rebuilding_ends_in_time_for_the_ranks_that_wait(tmp_path, capfd, script, backend, monkeypatch):
    """Half of --timeout: an episode that takes longer begins anew, which is said."""
    flags = {"env_id": env_id(habit_envs.Ten), "env_backend": backend}
    finish(script, 2, tmp_path / "run", updates=3, **flags)
    capfd.readouterr()
    # a clock that runs away
    monkeypatch.setattr(episodes, "time", SimpleNamespace(monotonic=itertools.count(0.0, 1e12).__next__))
    finish(script, 2, tmp_path / "run", resume=True, **flags)
    err = capfd.readouterr().err
    assert "cannot be resumed exactly" in err
    assert "take longer than there is time for; a greater --timeout allows more" in err
