"""What goes wrong around a run: workers that die or hang, disks that are full, numbers that are not finite."""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import train_torch
from fabric_ppo.envs.async_envs import AsyncEnvs
from fabric_ppo.envs.make import make_envs
from fabric_ppo.process.errors import NOT_ALL_WRITTEN, EnvironmentFault
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run.checkpoint import newest_first
from fabric_ppo.seeding import episode_seed, evaluation_seed
from tests.resuming import (
    assert_same_run,
    checkpoints,
    config_of,
    finish,
    metrics,
    on_call,
    summary,
    train,
)
from tests.runs import SCRIPTS, command, start_ranks
from tests.toy_envs import toy_env

# workers


def strike(number, index=1):
    """Send a signal to a worker of this process."""

    def act():
        (worker,) = (each for each in multiprocessing.active_children() if each.name == f"environment-{index}")
        os.kill(worker.pid, number)
        if number == signal.SIGKILL:
            worker.join()

    return act


STRUCK = {"killed": (signal.SIGKILL, "its worker died, exit code -9"), "hanging": (signal.SIGSTOP, "did not answer")}
ASYNC = {"env_backend": "async", "env_timeout": 1.0}


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


@pytest.mark.parametrize("fault", ["exit", "exit_reset"])
def test_a_worker_that_dies_again_and_again_is_given_up(fault, capfd):
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


# disks


def ended(ranks, seconds=60) -> list[int | None]:
    deadline = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
        if rank.is_alive():
            rank.kill()
    return [rank.exitcode for rank in ranks]


def no_large_files(limit):
    """From now on no file of this process may grow beyond `limit` bytes."""

    def act():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return act


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """A file system of so many bytes."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def told_incomplete(said: str) -> list[str]:
    """What a run that could not write everything said: each thing once when it failed, and all at the end."""
    assert "Traceback" not in said
    lines = said.splitlines()
    warnings = [
        line.removeprefix("warning: ").partition(" could not be written (")[0]
        for line in lines
        if line.startswith("warning: ")
    ]
    assert len(set(warnings)) == len(warnings)
    assert all(line.endswith("; the training goes on") for line in lines if line.startswith("warning: "))
    assert lines[-1].startswith("done, but not everything could be written: ")
    assert all(what in lines[-1] for what in warnings)
    return warnings


def intact(run_dir: Path) -> list[int]:
    """The updates of the checkpoints; every file there is one, whole."""
    for path in (run_dir / "checkpoints").iterdir():
        Checkpoint.from_bytes(path.read_bytes())
    return checkpoints(run_dir)


@pytest.mark.parametrize(("script", "size"), [("torch", 2), ("decoupled", 2)])
def test_where_files_cannot_grow_the_training_goes_on(tmp_path, monkeypatch, script, size):
    """Status 3 at the end, nothing half-written; with room again, `--resume` makes up for it, bit for bit."""
    updates = 30
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS[script], "collect", on_call(4, 0, no_large_files(8192), SCRIPTS[script].collect))
        config = config_of(script, size, tmp_path / "run", updates)
        statuses = ended(start_ranks(script, [config] * size, tmp_path / "out"))
    said = (tmp_path / "out/0.txt").read_text()
    assert statuses == [NOT_ALL_WRITTEN, *[0] * (size - 1)], said
    warnings = told_incomplete(said)
    assert {"a checkpoint", "metrics.jsonl", "TensorBoard's events", "policy.safetensors"} <= set(warnings)
    assert intact(tmp_path / "run") == [2]
    assert not (tmp_path / "run/policy.safetensors").exists()
    assert 10 < len(metrics(tmp_path / "run")) < updates  # all lines are whole
    assert summary(tmp_path / "run")["updates"] == updates
    finish(script, size, tmp_path / "run", updates, resume=True)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected", updates), resumes=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk(tmp_path):
    """Room for the first checkpoint, which is the best one too, and half of another."""
    content = (finish("torch", 1, tmp_path / "expected") / "checkpoints/update_6.ckpt").read_bytes()
    with small_disk(tmp_path / "disk", len(content) * 5 // 2 + 40000):
        run_dir = tmp_path / "disk/run"
        config = config_of("torch", 1, run_dir)
        statuses = ended(start_ranks("torch", [config], tmp_path / "out"))
        said = (tmp_path / "out/0.txt").read_text()
        assert statuses == [NOT_ALL_WRITTEN], said
        assert "a checkpoint" in told_incomplete(said)
        assert "No space left on device" in said
        assert intact(run_dir)[0] == 2
        lines = metrics(run_dir)
        assert lines == metrics(tmp_path / "expected")[: len(lines)]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """Where checkpoints should go lies a file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("in the way")
    config = config_of("torch", 1, tmp_path / "run")
    statuses = ended(start_ranks("torch", [config], tmp_path / "out"))
    said = (tmp_path / "out/0.txt").read_text()
    assert statuses == [NOT_ALL_WRITTEN], said
    assert told_incomplete(said) == ["a checkpoint"]
    (tmp_path / "run/checkpoints").unlink()
    expected = finish("torch", 1, tmp_path / "expected")
    assert (tmp_path / "run/policy.safetensors").read_bytes() == (expected / "policy.safetensors").read_bytes()


def test_a_folder_that_becomes_read_only(tmp_path, monkeypatch):
    """Older checkpoints stay."""
    run_dir = tmp_path / "run"
    monkeypatch.setattr(SCRIPTS["torch"], "collect", on_call(4, 0, lambda: forbid(run_dir), SCRIPTS["torch"].collect))
    statuses = ended(start_ranks("torch", [config_of("torch", 1, run_dir)], tmp_path / "out"))
    said = (tmp_path / "out/0.txt").read_text()
    assert statuses == [NOT_ALL_WRITTEN], said
    assert "a checkpoint" in told_incomplete(said)
    assert "Permission denied" in said
    assert intact(run_dir) == [2]
    assert len(metrics(run_dir)) == 6  # that file was open


def forbid(run_dir: Path) -> None:
    (run_dir / "checkpoints").chmod(0o555)
    # root is not held by modes, unless it gives up that capability (CAP_DAC_OVERRIDE, bit 1)
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~2
    assert libc.capset(header, sets) == 0


# numbers that are not finite


def poisoned(script, number, rank, what):
    """The script's update, whose `number`-th call in `rank` ends with a weight or a loss that is no number."""
    update = SCRIPTS[script].ppo_update
    calls = []

    def ppo_update(loss_fn, *args):
        stats = update(loss_fn, *args)
        calls.append(None)
        if len(calls) == number and int(os.environ.get("RANK", "0")) == rank:
            if what == "policy_loss":
                return replace(stats, policy_loss=math.nan)
            with torch.no_grad():
                next(loss_fn.parameters()).view(-1)[17] = {"nan": math.nan, "inf": math.inf}[what]
        return stats

    return ppo_update


@pytest.mark.parametrize(
    ("script", "size", "rank", "what"),
    [
        ("torch", 1, 0, "nan"),
        ("torch", 1, 0, "policy_loss"),
        ("torch", 2, 1, "inf"),
        ("fabric", 2, 0, "policy_loss"),
        ("decoupled", 3, 1, "nan"),
    ],
)
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, script, size, rank, what):
    """The message names update and number; what is on disk is finite, of the update before, and goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS[script], "ppo_update", poisoned(script, 4, rank, what))
        said = train(script, size, tmp_path / "run")
    teller = 0 if script == "decoupled" else rank
    name = "policy_loss" if what == "policy_loss" else "weights"
    assert f"TrainingError: update 4: {name} not finite; lower --learning-rate?" in said[teller]
    assert all(said)
    assert not (tmp_path / "run/policy.safetensors").exists()
    assert intact(tmp_path / "run")[0] == 3
    for path in newest_first(tmp_path / "run/checkpoints"):
        tensors = Checkpoint.from_bytes(path.read_bytes()).tensors
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    finish(script, size, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected"), resumes=1)


def test_an_evaluation_that_is_not_finite_leaves_a_run_that_goes_on(tmp_path):
    """A NaN in a checkpoint would have it refused, and with it the run."""
    seed = 3
    bad_seed = evaluation_seed(seed ^ 2**31, 1)
    flags = {"env_id": toy_env(length=4, fault="nan_reward", at=2, only_seed=bad_seed), "seed": seed, "eval_every": 3}
    (said,) = train("torch", 1, tmp_path / "run", **flags)
    assert f"EnvironmentFault: test episode 1, seed {bad_seed}: step returned reward nan" in said
    assert [line["update"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert intact(tmp_path / "run") == [2]
    (said,) = train("torch", 1, tmp_path / "run", resume=True, **flags)
    assert "EnvironmentFault: test episode 1" in said


class Huge(gymnasium.Env):
    """Numbers that are finite, but whose squares are not."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2), {}

    def step(self, action):
        return np.full(2, 1e200), 1.0, False, False, {}


gymnasium.register("Huge-v0", Huge, max_episode_steps=9)


@pytest.mark.parametrize(("script", "size"), [("torch", 2), ("decoupled", 2)])
def test_running_statistics_that_overflow_are_not_saved(tmp_path, script, size):
    """They are renewed after the update, whose weights are finite."""
    said = train(script, size, tmp_path / "run", env_id="Huge-v0", normalize_observations=True)
    assert "TrainingError: update 1: running statistics not finite\n" in said[0]
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert metrics(tmp_path / "run") == []


@pytest.mark.parametrize(("script", "size"), [("torch", 1), ("fabric", 2), ("decoupled", 2)])
def test_a_learning_rate_that_is_far_too_large(tmp_path, script, size):
    """Nothing is injected: the weights overflow in the first update."""
    said = train(script, size, tmp_path / "run", learning_rate=1e30)
    assert "TrainingError: update 1: " in said[0]
    assert "not finite; lower --learning-rate?" in said[0]
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert metrics(tmp_path / "run") == []


# where what is said goes


def overflow():
    """Both streams lead to a full disk from now on."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)


def test_what_cannot_be_said_costs_no_training(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train_torch, "collect", on_call(2, 0, overflow, train_torch.collect))
        (rank,) = start_ranks("torch", [config_of("torch", 1, tmp_path / "run", 4)], tmp_path / "out")
        rank.join(60)
    assert rank.exitcode == 0
    expected = finish("torch", 1, tmp_path / "expected", 4)
    assert (tmp_path / "run/policy.safetensors").read_bytes() == (expected / "policy.safetensors").read_bytes()
    assert summary(tmp_path / "run")["test"] == summary(expected)["test"]


def test_a_script_that_nobody_listens_to_ends_as_ever(tmp_path):
    """Python's own last flush, too."""
    flags = ["--total-timesteps", "64", "--num-steps", "16", "--num-envs", "2", "--run-dir", str(tmp_path / "run")]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command("torch", 0), *flags], cwd=tmp_path, stdout=full, stderr=full, timeout=60)
    assert done.returncode == 0
    assert summary(tmp_path / "run")["updates"] == 2


class Quitting(gymnasium.Env):
    """As a window that somebody has closed."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Quitting.steps += 1
        if Quitting.steps == 40:
            raise SystemExit(0)
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Quitting-v0", Quitting, max_episode_steps=9)


@pytest.mark.parametrize(("backend", "size"), [("sync", 1), ("async", 1), ("sync", 2)])
def test_an_environment_that_exits_has_failed(tmp_path, backend, size):
    configs = [config_of("torch", size, tmp_path / "run", env_id="Quitting-v0", env_backend=backend)] * size
    ranks = start_ranks("torch", configs, tmp_path / "out")
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [1] * size
    said = "".join((tmp_path / f"out/{rank}.txt").read_text() for rank in range(size))
    assert re.search(r"Quitting-v0 environment \d, episode seed \d+, step \d: step raised SystemExit: 0", said)


def test_a_folder_for_videos_that_cannot_be_made_costs_the_videos(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/test_videos").touch()
    config = config_of("torch", 1, tmp_path / "run", 2, capture_video=True)
    (rank,) = start_ranks("torch", [config], tmp_path / "out")
    rank.join(60)
    said = (tmp_path / "out/0.txt").read_text()
    assert rank.exitcode == NOT_ALL_WRITTEN
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"done, but not everything could be written: a video in {tmp_path}/run/test_videos (File exists)"
    )
    assert summary(tmp_path / "run")["test"]["episodes"] == 1
