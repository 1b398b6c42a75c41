"""Workers of environments that die or hang: a run stops and goes on later, or replaces them and nothing changes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from fabric_ppo.envs.async_envs import AsyncEnvs
from fabric_ppo.envs.make import make_envs
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.seeding import episode_seed
from tests.fixtures.processes import FOREVER, PATIENCE, state_of, wait_until
from tests.fixtures.resuming import (
    assert_same_run,
    checkpoints,
    config_of,
    finish,
    metrics,
    on_call,
    train,
)
from tests.fixtures.toy_envs import toy_env


def strike(number, index=1):
    """Send a signal to a worker of this process."""

    def act():
        (worker,) = (each for each in multiprocessing.active_children() if each.name == f"environment-{index}")
        os.kill(worker.pid, number)
        if number == signal.SIGKILL:
            worker.join()
        else:
            assert wait_until(lambda: state_of(worker.pid) == "T")

    return act


STRUCK = {"killed": (signal.SIGKILL, "its worker died, exit code -9"), "hanging": (signal.SIGSTOP, "did not answer")}
ASYNC = {"env_backend": "async", "env_timeout": FOREVER}


@pytest.fixture(autouse=True)
def only_what_is_stopped_hangs(monkeypatch):
    """A worker that is slow is waited for; one that is stopped cannot answer, and has a moment to do so."""
    answer = AsyncEnvs._answer

    def answer_of(envs, index, seconds):
        return answer(envs, index, 0.1 if state_of(envs._workers[index].pid) == "T" else seconds)

    monkeypatch.setattr(AsyncEnvs, "_answer", answer_of)


@pytest.fixture
def patient_joins(monkeypatch):
    """A worker whose pipe has closed is about to end: wait for its exit status for as long as it takes."""
    process = multiprocessing.context.ForkProcess
    join = process.join
    monkeypatch.setattr(process, "join", lambda self, timeout=None: join(self, timeout and PATIENCE))


@pytest.mark.parametrize("what", list(STRUCK))
@pytest.mark.parametrize(("script", "size", "rank"), [("torch", 2, 1), ("decoupled", 2, 0)])
def test_a_run_stops_where_a_worker_is_lost_and_goes_on_later(tmp_path, monkeypatch, what, script, size, rank):
    """The message names the environment by its global id; the state after the last update is there."""
    number, message = STRUCK[what]
    with monkeypatch.context() as patch:
        # the fourth step of the fourth rollout
        patch.setattr(AsyncEnvs, "step", on_call(52, rank, strike(number), AsyncEnvs.step))
        said = train(script, size, tmp_path / "run", **ASYNC)
    env = 2 * rank + 1
    assert f"Error: CartPole-v1 environment {env}: its worker {message.removeprefix('its worker ')}" in said[rank]
    assert all(said)
    assert checkpoints(tmp_path / "run")[0] == 3
    finish(script, size, tmp_path / "run", resume=True, **ASYNC)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected", **ASYNC), resumes=1)


@pytest.mark.parametrize("what", list(STRUCK))
def test_a_lost_worker_is_replaced_and_nothing_changes(tmp_path, monkeypatch, capfd, what):
    """Same bits as without the fault; the replacements of all ranks are counted."""
    number, message = STRUCK[what]
    flags = ASYNC | {"restart_envs": True}
    expected = finish("torch", 2, tmp_path / "expected", **flags)
    with monkeypatch.context() as patch:
        step = AsyncEnvs.step
        for at, rank, index in ((20, 0, 0), (52, 1, 1), (53, 1, 1)):
            step = on_call(at, rank, strike(number, index), step)
        patch.setattr(AsyncEnvs, "step", step)
        finish("torch", 2, tmp_path / "run", **flags)
    said = [line for line in capfd.readouterr().err.splitlines() if message in line]
    assert [line.split(":")[0] for line in said] == [f"CartPole-v1 environment {env}" for env in (0, 3, 3)]
    assert all(line.endswith("; it is replaced") for line in said)
    policies = [(path / "policy.safetensors").read_bytes() for path in (tmp_path / "run", expected)]
    assert policies[0] == policies[1]
    lines, wanted = metrics(tmp_path / "run"), metrics(expected)
    assert [line.pop("Info/env_restarts") for line in lines] == [0, 1, 1, 3, 3, 3]
    assert [line.pop("Info/env_restarts") for line in wanted] == [0] * 6
    assert lines == wanted


def test_a_worker_is_replaced_after_a_resume_too(tmp_path, monkeypatch):
    """Its episode began in the process before."""
    flags = ASYNC | {"restart_envs": True, "env_id": "Pendulum-v1", "anneal_lr": False}
    expected = finish("torch", 1, tmp_path / "expected", **flags)
    finish("torch", 1, tmp_path / "run", updates=3, **flags)
    with monkeypatch.context() as patch:
        patch.setattr(AsyncEnvs, "step", on_call(5, 0, strike(signal.SIGKILL), AsyncEnvs.step))
        finish("torch", 1, tmp_path / "run", resume=True, **flags)
    assert metrics(tmp_path / "run")[-1]["Info/env_restarts"] == 1
    policies = [(path / "policy.safetensors").read_bytes() for path in (tmp_path / "run", expected)]
    assert policies[0] == policies[1]


def stepped(envs, steps):
    """Observations of steps with action 0."""
    n = envs.num_envs
    obs = np.zeros((n, *envs.spec.observation.shape), envs.spec.observation.dtype)
    seen = []
    for _ in range(steps):
        flags = [np.zeros(n, bool) for _ in range(3)]
        envs.step(np.zeros((n, *envs.spec.action.shape), np.int64), obs, np.zeros(n, np.float32), *flags)
        seen.append(obs.copy())
    return seen


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("what", list(STRUCK))
def test_a_lost_worker_is_replaced_by_one_that_starts_alike(capfd, what, method):
    """The others and its own episode go on as without the fault."""
    number, _ = STRUCK[what]
    config = config_of("torch", 1, "unused", restart_envs=True, env_start_method=method, **ASYNC)
    seen = []
    for is_struck in (False, True):
        envs = make_envs(config, 0, 1)
        try:
            envs.reset(np.zeros((2, 4), np.float32))
            first = stepped(envs, 3)
            if is_struck:
                strike(number)()
            seen.append([*first, *stepped(envs, 12)])
        finally:
            envs.close()
    np.testing.assert_array_equal(*seen)
    assert envs.restarts == 1
    assert capfd.readouterr().err.count("it is replaced") == 1


@pytest.mark.parametrize("fault", ["exit", "exit_reset"])
def test_a_worker_that_dies_again_and_again_is_given_up(fault, capfd, patient_joins):
    """After three replacements, each of which died at the same place."""
    seed = 3
    bad_seed = episode_seed(seed, 1, 1 if fault == "exit_reset" else 0, 2)
    env_id = toy_env(length=4, fault=fault, at=2, only_seed=bad_seed)
    config = config_of("torch", 1, "unused", env_id=env_id, seed=seed, restart_envs=True, **ASYNC)
    envs = make_envs(config, 0, 1)
    try:
        envs.reset(np.zeros((2, 2, 2), np.float32))
        with pytest.raises(EnvironmentFault, match="environment 1: its worker died, exit code 7"):
            stepped(envs, 8)
    finally:
        envs.close()
    assert envs.restarts == 3
    assert capfd.readouterr().err.count("it is replaced") == 3
    assert not multiprocessing.active_children()


class Restless(gymnasium.Env):
    """Draws from the operating system: what a replaced worker sees is something else."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.frombuffer(os.urandom(2), np.uint8).astype(np.float32) / 255, 1.0, False, False, {}


gymnasium.register("Restless-v0", Restless)


def test_a_worker_whose_episode_cannot_be_rebuilt_stops_the_run(monkeypatch):
    config = config_of("torch", 1, "unused", env_id="Restless-v0", restart_envs=True, **ASYNC)
    envs = make_envs(config, 0, 1)
    try:
        envs.reset(np.zeros((2, 2), np.float32))
        stepped(envs, 3)
        strike(signal.SIGKILL)()
        with pytest.raises(EnvironmentFault, match="environment 1: its worker was replaced, but its observation diff"):
            stepped(envs, 1)
    finally:
        envs.close()


class Frail(gymnasium.Env):
    """Its process dies as it makes one, unless that is the test's own, as often as there are files to be eaten."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    deaths = Path()

    def __init__(self):
        if multiprocessing.parent_process() is not None:
            for death in Frail.deaths.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    death.unlink()
                    os._exit(7)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(2, self.steps / 100, np.float32), 1.0, False, False, {}


gymnasium.register("Frail-v0", Frail)


@pytest.fixture
def frail(tmp_path, monkeypatch):
    """Environments of two workers that are replaced, made with so many deaths to come; the folder of deaths."""
    monkeypatch.setattr(Frail, "deaths", tmp_path)

    def make(deaths):
        for number in range(deaths):
            (tmp_path / str(number)).touch()
        return make_envs(config_of("torch", 1, "unused", env_id="Frail-v0", restart_envs=True, **ASYNC), 0, 1)

    return make


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_worker_that_dies_as_it_starts_is_replaced(frail, deaths):
    envs = frail(deaths)
    try:
        envs.reset(np.zeros((2, 2), np.float32))
        assert [obs.tolist() for obs in stepped(envs, 2)] == [
            np.full((2, 2), np.float32(k / 100)).tolist() for k in (1, 2)
        ]
    finally:
        envs.close()
    assert envs.restarts == deaths


def test_a_replacement_that_dies_is_replaced_too(frail, tmp_path):
    """As often as any worker; the episode goes on where it was."""
    envs = frail(0)
    try:
        envs.reset(np.zeros((2, 2), np.float32))
        stepped(envs, 3)
        for number in range(2):
            (tmp_path / str(number)).touch()
        strike(signal.SIGKILL)()
        (obs,) = stepped(envs, 1)
        assert obs.tolist() == np.full((2, 2), np.float32(0.04)).tolist()
    finally:
        envs.close()
    assert envs.restarts == 3
    assert not multiprocessing.active_children()
