"""Asked to stop, a run saves what it has and ends with status 75 on every rank, soon; resumed, it loses nothing."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

import train_torch
from fabric_ppo.process import launch
from fabric_ppo.process.errors import STOPPED_BY_SIGNAL
from fabric_ppo.process.signals import signals
from fabric_ppo.run import run as run_module
from tests.resuming import assert_same_run, checkpoints, config_of, finish, metrics, on_call
from tests.runs import ROOT, SCRIPTS, clean_environment, command, start_ranks
from tests.test_faults import alive, descendants, wait_for

SECONDS = 10.0
UPDATES = 25
STOPPED = r"stopped by (SIG\w+|a signal); saved (\S+/update_(\d+)\.ckpt): go on with --resume --run-dir (\S+)"


@pytest.fixture
def start(tmp_path):
    """Start ranks of a run in `tmp_path/run`; kill what is left of them at the end."""
    started = []

    def start_(script, size, **flags):
        config = config_of(script, size, tmp_path / "run", **{"updates": UPDATES} | flags)
        started.extend(start_ranks(script, [config] * size, tmp_path / "out"))
        return started

    yield start_
    for rank in started:
        if rank.is_alive():
            rank.kill()


def statuses(ranks, seconds=SECONDS) -> list[int | None]:
    """Their exit statuses, None for one that is still there after some seconds."""
    deadline = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
    return [rank.exitcode for rank in ranks]


def said(tmp_path, rank: int) -> str:
    return (tmp_path / f"out/{rank}.txt").read_text()


def logged(run_dir) -> int:
    """Updates in metrics.jsonl."""
    with contextlib.suppress(OSError):
        return (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def slowly(monkeypatch, script, seconds=0.05):
    """Updates that take so long that a signal comes in the middle of a run."""
    update = SCRIPTS[script].ppo_update

    def slow(*args):
        time.sleep(seconds)
        return update(*args)

    monkeypatch.setattr(SCRIPTS[script], "ppo_update", slow)


@pytest.mark.parametrize(
    ("script", "size", "number", "victim", "flags"),
    [
        ("torch", 1, signal.SIGUSR1, 0, {}),
        ("torch", 2, signal.SIGTERM, 0, {"env_id": "Pendulum-v1"}),
        ("torch", 2, signal.SIGUSR1, 1, {"share_data": True}),
        ("fabric", 2, signal.SIGINT, 1, {}),
        ("decoupled", 3, signal.SIGTERM, 0, {}),
        ("decoupled", 3, signal.SIGINT, 2, {"overlap": True}),
    ],
)
def test_a_signal_to_one_rank_stops_all_in_good_order(
    tmp_path, monkeypatch, start, script, size, number, victim, flags
):
    """Every rank ends with 75; rank 0 says in one line where the state is; resumed, the bits are the same."""
    with monkeypatch.context() as patch:
        slowly(patch, script)
        ranks = start(script, size, **flags)
        assert wait_for(lambda: logged(tmp_path / "run") >= 3, 60), said(tmp_path, 0)
        os.kill(ranks[victim].pid, number)
        assert statuses(ranks) == [STOPPED_BY_SIGNAL] * size, said(tmp_path, 0)
    texts = [said(tmp_path, rank) for rank in range(size)]
    assert "Traceback" not in "".join(texts)
    assert "".join(texts[1:]) == ""
    (found,) = re.findall(STOPPED, texts[0])
    newest, path = checkpoints(tmp_path / "run")[0], tmp_path / "run/checkpoints"
    assert found[1:] == (f"{path}/update_{newest}.ckpt", str(newest), str(tmp_path / "run"))
    assert newest == logged(tmp_path / "run") < UPDATES
    if victim == 0:
        assert found[0] == signal.Signals(number).name
    finish(script, size, tmp_path / "run", UPDATES, resume=True, **flags)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected", UPDATES, **flags), resumes=1)


def test_workers_leave_a_terminals_ctrl_c_to_their_parent(tmp_path, monkeypatch, start):
    """A terminal sends it to every process in the foreground."""
    slowly(monkeypatch, "torch")
    (rank,) = start("torch", 1, env_backend="async")
    assert wait_for(lambda: logged(tmp_path / "run") >= 3, 60), said(tmp_path, 0)
    everything = [rank.pid, *descendants(rank.pid)]
    assert len(everything) == 3
    os.killpg(rank.pid, signal.SIGINT)
    os.killpg(rank.pid, signal.SIGINT)  # the launcher, which got it too, passes it on
    assert statuses([rank]) == [STOPPED_BY_SIGNAL]
    assert re.search(STOPPED, said(tmp_path, 0))
    assert "Traceback" not in said(tmp_path, 0)
    assert "KeyboardInterrupt" not in said(tmp_path, 0)
    assert not any(alive(pid) for pid in everything)


def endless(monkeypatch, script, after):
    """The update after `after` of them takes hours."""
    update = SCRIPTS[script].ppo_update
    calls = []

    def long(loss_fn, batch, step, config, ranks):
        calls.append(None)
        shown = replace(config, update_epochs=2 if len(calls) <= after else 10**6)
        return update(loss_fn, batch, step, shown, ranks)

    monkeypatch.setattr(SCRIPTS[script], "ppo_update", long)


@pytest.mark.parametrize(("script", "size", "victim"), [("torch", 2, 1), ("decoupled", 3, 1)])
def test_an_update_that_takes_too_long_is_given_up(tmp_path, monkeypatch, start, script, size, victim):
    """The state from before it is saved."""
    with monkeypatch.context() as patch:
        endless(patch, script, after=3)
        ranks = start(script, size)
        assert wait_for(lambda: logged(tmp_path / "run") == 3, 60), said(tmp_path, 0)
        time.sleep(0.3)
        os.kill(ranks[victim].pid, signal.SIGTERM)
        assert statuses(ranks) == [STOPPED_BY_SIGNAL] * size, said(tmp_path, 0)
    assert checkpoints(tmp_path / "run")[0] == 3
    assert len(re.findall(STOPPED, said(tmp_path, 0))) == 1
    assert not any("Traceback" in said(tmp_path, rank) for rank in range(size))
    finish(script, size, tmp_path / "run", UPDATES, resume=True)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected", UPDATES), resumes=1)


class Clinging(gymnasium.Env):
    """Takes for ever to close."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.is_used = True
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def close(self):
        if hasattr(self, "is_used"):
            time.sleep(600)


gymnasium.register("Clinging-v0", Clinging, max_episode_steps=20)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_that_does_not_close_is_not_waited_for(tmp_path, monkeypatch, start, backend):
    for name, seconds in (("GRACE_SECONDS", 1.0), ("_TEARDOWN_SECONDS", 0.5)):
        monkeypatch.setattr(f"fabric_ppo.signals.{name}", seconds)
    slowly(monkeypatch, "torch")
    (rank,) = start("torch", 1, env_id="Clinging-v0", env_backend=backend)
    assert wait_for(lambda: logged(tmp_path / "run") >= 3, 60), said(tmp_path, 0)
    os.kill(rank.pid, signal.SIGTERM)
    assert statuses([rank], 5.0) == [STOPPED_BY_SIGNAL]
    assert re.search(STOPPED, said(tmp_path, 0))
    assert checkpoints(tmp_path / "run")[0] == logged(tmp_path / "run")


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch, start):
    """Status 130, at once, also in the middle of an update; the other rank follows."""
    endless(monkeypatch, "torch", after=2)
    ranks = start("torch", 2)
    assert wait_for(lambda: logged(tmp_path / "run") == 2, 60), said(tmp_path, 0)
    os.kill(ranks[0].pid, signal.SIGINT)
    time.sleep(2.2)  # busy ranks may notice the first a second late
    assert ranks[0].is_alive()
    os.kill(ranks[0].pid, signal.SIGINT)
    assert statuses(ranks[:1], 1.7) == [130]
    assert said(tmp_path, 0).splitlines()[-1] == "interrupted twice"
    assert statuses(ranks) == [130, STOPPED_BY_SIGNAL]
    assert checkpoints(tmp_path / "run")[0] == 2


def signal_itself(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def signal_itself_unseen():
    """As while flags are read, when what is said goes elsewhere."""
    with contextlib.redirect_stderr(io.StringIO()):
        signal_itself()


@pytest.mark.parametrize("act", [signal_itself, signal_itself_unseen])
def test_before_anything_runs_it_ends_at_once(tmp_path, start, monkeypatch, act):
    """While the heavy imports go on there is nothing to clean up."""
    monkeypatch.setattr(signals, "guard", act)
    (rank,) = start("torch", 1)
    assert statuses([rank]) == [STOPPED_BY_SIGNAL]
    assert said(tmp_path, 0) == "stopped by SIGTERM before the training began\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["make_envs", "make_agent"])
def test_before_the_first_update_no_folder_is_left(tmp_path, start, monkeypatch, name):
    monkeypatch.setattr(SCRIPTS["torch"], name, on_call(1, 0, signal_itself, getattr(SCRIPTS["torch"], name)))
    (rank,) = start("torch", 1, env_backend="async")
    assert statuses([rank]) == [STOPPED_BY_SIGNAL]
    assert said(tmp_path, 0) == "stopped by SIGTERM\n"
    assert not (tmp_path / "run").exists()


def test_while_the_agent_is_tested(tmp_path, start, monkeypatch):
    """The training is over and on record; resumed, the run does the test."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate", on_call(1, 0, signal_itself, run_module.evaluate))
        (rank,) = start("torch", 1, updates=4)
        assert statuses([rank]) == [STOPPED_BY_SIGNAL]
    assert "Traceback" not in said(tmp_path, 0)
    assert checkpoints(tmp_path / "run")[0] == 4
    finish("torch", 1, tmp_path / "run", 4, resume=True)
    assert_same_run(tmp_path / "run", finish("torch", 1, tmp_path / "expected", 4), resumes=1)


def explode():
    raise RuntimeError("boom")


def test_nothing_interrupts_a_failed_run_while_it_saves(tmp_path, monkeypatch, start):
    """The launcher of a rank that has died ends the others, which have an update to save."""
    monkeypatch.setattr(train_torch, "ppo_update", on_call(4, 0, explode, train_torch.ppo_update))
    monkeypatch.setattr(os, "replace", on_call(1, 0, signal_itself, os.replace, about="update_3.ckpt"))
    (rank,) = start("torch", 1)
    assert statuses([rank]) == [1]
    assert checkpoints(tmp_path / "run")[0] == 3
    assert "RuntimeError: boom" in said(tmp_path, 0)
    assert "StoppedBySignal" not in said(tmp_path, 0)


def test_nothing_interrupts_what_a_failed_run_tells(tmp_path, monkeypatch, start):
    monkeypatch.setattr(train_torch, "ppo_update", on_call(2, 0, explode, train_torch.ppo_update))
    monkeypatch.setattr(launch, "told", on_call(1, 0, signal_itself, launch.told))
    (rank,) = start("torch", 1)
    assert statuses([rank]) == [1]
    assert said(tmp_path, 0).splitlines()[-1] == "RuntimeError: boom"
    assert "StoppedBySignal" not in said(tmp_path, 0)


def deaf():
    """Nobody reads what this process says, as after a Ctrl-C that has ended `tee` as well."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    os.dup2(write, 2)


@pytest.mark.parametrize("ends_in_time", [True, False])
def test_a_signal_works_where_nobody_listens(tmp_path, monkeypatch, start, ends_in_time):
    monkeypatch.setattr("fabric_ppo.signals.GRACE_SECONDS", 1.0)
    monkeypatch.setattr(train_torch, "collect", on_call(2, 0, deaf, train_torch.collect))
    (slowly(monkeypatch, "torch") if ends_in_time else endless(monkeypatch, "torch", after=3))
    (rank,) = start("torch", 1)
    assert wait_for(lambda: logged(tmp_path / "run") >= 3, 60), said(tmp_path, 0)
    os.kill(rank.pid, signal.SIGTERM)
    assert statuses([rank], 5.0) == [STOPPED_BY_SIGNAL]
    assert checkpoints(tmp_path / "run")[0] == logged(tmp_path / "run")


class Forking(gymnasium.Env):
    """Has a process of its own, which it ends as one does."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        own = os.fork()
        if own == 0:
            time.sleep(600)
        os.kill(own, signal.SIGTERM)
        if not wait_for(lambda: os.waitpid(own, os.WNOHANG) != (0, 0), 5):
            os.kill(own, signal.SIGKILL)
            raise RuntimeError("it lives")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Forking-v0", Forking, max_episode_steps=20)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_signal_to_a_process_of_an_environment_is_not_the_runs(tmp_path, start, backend):
    (rank,) = start("torch", 1, updates=4, env_id="Forking-v0", env_backend=backend)
    assert statuses([rank], 30) == [0], said(tmp_path, 0)
    assert logged(tmp_path / "run") == 4


class Helped(gymnasium.Env):
    """Steps in a process of its own."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        asked, self.ask = os.pipe()
        self.answer, answer = os.pipe()
        if os.fork() == 0:
            os.close(self.ask)
            while os.read(asked, 1):
                os.write(answer, b"x")
            os._exit(0)
        os.close(answer)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        os.write(self.ask, b"x")
        if os.read(self.answer, 1) != b"x":
            raise RuntimeError("the helper is gone")
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def close(self):
        os.close(self.ask)


gymnasium.register("Helped-v0", Helped, max_episode_steps=20)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_ctrl_c_to_all_leaves_an_environment_its_processes(tmp_path, monkeypatch, start, backend):
    slowly(monkeypatch, "torch")
    (rank,) = start("torch", 1, env_id="Helped-v0", env_backend=backend, num_envs=1)
    assert wait_for(lambda: logged(tmp_path / "run") >= 3, 60), said(tmp_path, 0)
    os.killpg(rank.pid, signal.SIGINT)
    assert statuses([rank]) == [STOPPED_BY_SIGNAL], said(tmp_path, 0)


@pytest.mark.parametrize("victim", [0, 1])
def test_other_hosts_hear_of_a_signal(tmp_path, monkeypatch, start, victim):
    """By what player and trainers send each other anyway: a signal is passed on by hand on its own host only."""
    monkeypatch.setattr(signals, "forward_to", lambda pids: None)
    slowly(monkeypatch, "decoupled")
    ranks = start("decoupled", 2)
    assert wait_for(lambda: logged(tmp_path / "run") >= 3, 60), said(tmp_path, 0)
    os.kill(ranks[victim].pid, signal.SIGTERM)
    assert statuses(ranks) == [STOPPED_BY_SIGNAL] * 2, said(tmp_path, 0)
    assert re.search(STOPPED, said(tmp_path, 0))


@pytest.mark.parametrize("is_signalled", [False, True])
@pytest.mark.parametrize("when", ["step", "reset"])
@pytest.mark.parametrize(("size", "failing"), [(1, 0), (2, 1)])
def test_a_failed_rank_whose_environment_does_not_close_ends(
    tmp_path, monkeypatch, start, size, failing, when, is_signalled
):
    """And says why, also if something has asked it to stop in the meantime, as its launcher may."""
    for name, seconds in (("GRACE_SECONDS", 0.5), ("_TEARDOWN_SECONDS", 0.5), ("_SECONDS_TO_CLOSE", 1.5)):
        monkeypatch.setattr(f"fabric_ppo.signals.{name}", seconds)

    def fail(*args, **kwargs):
        raise RuntimeError("no answer")

    def close(env):
        if in_rank(failing) and is_signalled:
            signal_itself()
        time.sleep(600 if in_rank(failing) else 0)

    works = getattr(Clinging, when)
    monkeypatch.setattr(Clinging, when, lambda *args, **named: (fail if in_rank(failing) else works)(*args, **named))
    monkeypatch.setattr(Clinging, "close", close)
    ranks = start("torch", size, env_id="Clinging-v0")
    ended = statuses(ranks)
    assert ended[failing] == 1, said(tmp_path, failing)
    assert set(ended) <= ({1, STOPPED_BY_SIGNAL} if is_signalled else {1})  # a signal is passed on
    assert "Clinging-v0 environment" in said(tmp_path, failing)
    assert "RuntimeError: no answer" in said(tmp_path, failing)


def in_rank(rank: int) -> bool:
    return os.environ.get("RANK", "0") == str(rank)


def test_the_script_itself(tmp_path):
    """Not forked: an update of a hundred thousand epochs, and a signal."""
    flags = ["--update-epochs", "100000", "--num-threads", "1", "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_torch.py"), *flags],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists(), 90)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=SECONDS)
    assert process.returncode == STOPPED_BY_SIGNAL
    assert text.splitlines()[-1] == "stopped by SIGTERM; nothing to save before the first update"
    assert "Traceback" not in text


def test_a_launcher_that_is_asked_to_stop(tmp_path):
    """`torchrun` passes SIGTERM on to all ranks, and reports a failure of its own."""
    flags = ["--total-timesteps", "100000000", "--num-steps", "64", "--run-dir", str(tmp_path / "run")]
    with (tmp_path / "out.txt").open("wb") as out:
        process = subprocess.Popen(
            command("torch", 2, *flags), cwd=tmp_path, stdout=out, stderr=out, env=clean_environment()
        )
    try:
        assert wait_for(lambda: logged(tmp_path / "run") >= 2, 90), (tmp_path / "out.txt").read_text()
        everything = [process.pid, *descendants(process.pid)]
        process.send_signal(signal.SIGTERM)
        assert wait_for(lambda: process.poll() is not None, 2 * SECONDS)
        assert wait_for(lambda: not any(alive(pid) for pid in everything), SECONDS)
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    text = (tmp_path / "out.txt").read_text()
    (found,) = re.findall(STOPPED, text)
    assert (
        checkpoints(tmp_path / "run")[0] == int(found[2]) == logged(tmp_path / "run") == len(metrics(tmp_path / "run"))
    )


def test_a_launcher_that_ends_a_rank_of_many_that_fail_alike():
    """Rank 0 tells what is wrong with the input; the others have nothing to add when they are ended for it."""
    code = """
import os
os.environ |= {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
from fabric_ppo.launch import ConfigError, run_script
from fabric_ppo.signals import signals
signals.install()
def main(config):
    print("fails", flush=True)
    raise ConfigError("--flag: wrong")
run_script(main, None)
"""
    rank = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert rank.stdout.readline() == "fails\n"
    time.sleep(0.2)
    rank.terminate()
    assert rank.communicate(timeout=30)[1] == ""
    assert rank.returncode == 2


def test_what_python_swallows_is_not_told_as_a_failure():
    """A signal that comes while an object is being deleted; another error there is told as ever."""
    code = """
import os, signal, time
from fabric_ppo.signals import signals
signals.install()
signals.guard()
class Deleted:
    def __init__(self, action):
        self.action = action
    def __del__(self):
        self.action()
        time.sleep(0.1)
deleted = Deleted(lambda: os.kill(os.getpid(), signal.SIGTERM))
del deleted
print(signals.name)
deleted = Deleted(lambda: 1 / 0)
del deleted
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout == "SIGTERM\n"
    assert "StoppedBySignal" not in done.stderr
    assert "ZeroDivisionError" in done.stderr
