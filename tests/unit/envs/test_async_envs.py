"""Worker processes: they end when they are asked to, and one that dies or hangs is noticed."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from fabric_ppo.envs import async_envs
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.seeding import episode_seed
from tests.fixtures.envs import SEED, close_or_fail, env_opener, kill_workers, reset, run_into_fault, step, zeros
from tests.fixtures.processes import FOREVER, PATIENCE, alive
from tests.fixtures.toy_envs import toy_env


@pytest.fixture
def open_workers():
    """Make environments in worker processes; the environments and the processes' ids."""
    with env_opener("async") as open_envs:

        def open_(*args, **flags):
            before = {process.pid for process in multiprocessing.active_children()}
            envs = open_envs(*args, **flags)
            return envs, [process.pid for process in multiprocessing.active_children() if process.pid not in before]

        yield open_
        kill_workers()


def test_no_worker_survives_close(open_workers):
    envs, pids = open_workers("CartPole-v1", 3)
    reset(envs)
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    close_or_fail(envs)
    assert not any(alive(pid) for pid in pids)
    envs.close()  # a second call does nothing


@pytest.mark.parametrize("fault", ["raise", "exit", "exit_reset"])
def test_a_failing_worker_is_noticed_and_none_survives(monkeypatch, open_workers, fault):
    """At once, not after the timeout, which nobody would live to see; then `close` waits for none of them."""
    monkeypatch.setattr(async_envs, "_CLOSE_SECONDS", FOREVER)
    env = 4
    bad_seed = episode_seed(SEED, env, 1 if fault == "exit_reset" else 0, 6)
    env_id = toy_env(fault=fault, at=1, only_seed=bad_seed)
    envs, pids = open_workers(env_id, 3, 1, 2, env_timeout=FOREVER)
    message = run_into_fault(envs)
    assert f"{env_id} environment {env}" in message
    if fault.startswith("exit"):
        assert "exit code 7" in message
    close_or_fail(envs)
    assert not any(alive(pid) for pid in pids)


def test_a_hanging_worker_is_noticed_within_the_timeout_and_none_survives(monkeypatch, open_workers):
    """However slow the machine: until it hangs, workers have all the time they need, and so have the others then."""
    monkeypatch.setattr(async_envs, "_CLOSE_SECONDS", FOREVER)
    answer, hangs = async_envs.AsyncEnvs._answer, []
    monkeypatch.setattr(
        async_envs.AsyncEnvs,
        "_answer",
        lambda envs, index, seconds: answer(envs, index, seconds if index in hangs else PATIENCE),
    )
    env = 4
    env_id = toy_env(fault="hang", at=1, only_seed=episode_seed(SEED, env, 0, 6))
    envs, pids = open_workers(env_id, 3, 1, 2, env_timeout=0.5)
    reset(envs)
    step(envs, zeros(envs))
    hangs.append(1)
    started = time.perf_counter()
    with pytest.raises(EnvironmentFault, match=r"within 0\.5 s") as caught:
        step(envs, zeros(envs))
    assert time.perf_counter() - started >= 0.5
    assert f"{env_id} environment {env}" in str(caught.value)
    close_or_fail(envs)
    assert not any(alive(pid) for pid in pids)


def test_the_largest_timeout_that_a_config_takes_works(open_workers):
    envs, _ = open_workers("CartPole-v1", 1, env_timeout=1e9)
    reset(envs)
