"""Asked to stop, a run saves what it has and ends with status 75 on every rank; resumed, it loses nothing.

That it ends soon is tested by what ends it, not by a clock: the seconds after which the product stops waiting are
patched to be endless, and short only in tests of what comes after them. An update waits until the signal is sent.
"""

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
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

import train_torch
from fabric_ppo.process import script as script_module
from fabric_ppo.process import signals as signals_module
from fabric_ppo.process.errors import STOPPED_BY_SIGNAL
from fabric_ppo.process.signals import StopSignals, signals
from fabric_ppo.run import evaluation
from tests.fixtures.launching import ROOT, SCRIPTS, clean_environment, command, exit_codes, patched_script, start_ranks
from tests.fixtures.processes import FOREVER, PATIENCE, alive, descendants, kill_tree, wait_until
from tests.fixtures.resuming import assert_same_run, checkpoints, config_of, finish, metrics, on_call

UPDATES = 10
STOPPED = r"stopped by (SIG\w+|a signal); saved (\S+/update_(\d+)\.ckpt): go on with cd .+ --run-dir (\S+) --resume"


@pytest.fixture(autouse=True)
def nothing_is_late(monkeypatch):
    """Whatever has to end does so by itself, however long that takes."""
    for name in ("GRACE_SECONDS", "_AFTER_RANK_ZERO", "_SECONDS_TO_CLOSE", "_TEARDOWN_SECONDS"):
        monkeypatch.setattr(signals_module, name, FOREVER)
    monkeypatch.setattr(signals_module, "_SAME_CTRL_C", FOREVER)


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
            kill_tree(rank.pid)


def said(tmp_path, rank: int) -> str:
    return (tmp_path / f"out/{rank}.txt").read_text()


def logged(run_dir) -> int:
    """Updates in metrics.jsonl."""
    with contextlib.suppress(OSError):
        return (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


class Gate:
    """Ranks that are forked after `hold` wait in their fourth update until the gate is opened."""

    def __init__(self, path):
        self.path = path

    def hold(self, monkeypatch, script):
        update, calls = SCRIPTS[script].ppo_update, []

        def held(*args):
            calls.append(None)
            while len(calls) > 3 and not self.path.exists():
                time.sleep(0.01)
            return update(*args)

        monkeypatch.setattr(SCRIPTS[script], "ppo_update", held)

    def open(self):
        self.path.touch()


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate_is_open")


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
    tmp_path, monkeypatch, start, gate, script, size, number, victim, flags
):
    """Every rank ends with 75; rank 0 says in one line where the state is; resumed, the bits are the same."""
    with monkeypatch.context() as patch:
        gate.hold(patch, script)
        ranks = start(script, size, **flags)
        assert wait_until(lambda: logged(tmp_path / "run") >= 3), said(tmp_path, 0)
        os.kill(ranks[victim].pid, number)
        gate.open()
        assert exit_codes(ranks) == [STOPPED_BY_SIGNAL] * size, said(tmp_path, 0)
    texts = [said(tmp_path, rank) for rank in range(size)]
    assert "Traceback" not in "".join(texts)
    assert "".join(texts[1:]) == ""
    (found,) = re.findall(STOPPED, texts[0])
    newest, path = checkpoints(tmp_path / "run")[0], tmp_path / "run/checkpoints"
    assert found[1:] == (f"{path}/update_{newest}.ckpt", str(newest), str(tmp_path / "run"))
    assert newest == logged(tmp_path / "run") < UPDATES
    # rank 0 may hear of it with the update first
    assert found[0] in (signal.Signals(number).name, *["a signal"] * (victim > 0))
    finish(script, size, tmp_path / "run", UPDATES, resume=True, **flags)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected", UPDATES, **flags), resumes=1)


def test_workers_leave_a_terminals_ctrl_c_to_their_parent(tmp_path, monkeypatch, start, gate):
    """A terminal sends it to every process in the foreground."""
    gate.hold(monkeypatch, "torch")
    (rank,) = start("torch", 1, env_backend="async")
    assert wait_until(lambda: logged(tmp_path / "run") >= 3), said(tmp_path, 0)
    everything = [rank.pid, *descendants(rank.pid)]
    assert len(everything) == 3
    os.killpg(rank.pid, signal.SIGINT)
    os.killpg(rank.pid, signal.SIGINT)  # the launcher, which got it too, passes it on
    gate.open()
    assert exit_codes([rank]) == [STOPPED_BY_SIGNAL]
    assert re.search(STOPPED, said(tmp_path, 0))
    assert "Traceback" not in said(tmp_path, 0)
    assert "KeyboardInterrupt" not in said(tmp_path, 0)
    assert wait_until(lambda: not any(alive(pid) for pid in everything))


def endless(monkeypatch, script, after):
    """The update after `after` of them takes days; the rank says that it begins."""
    update = SCRIPTS[script].ppo_update
    calls = []

    def long(loss_fn, batch, step, coefs, config, ranks):
        calls.append(None)
        if len(calls) <= after:
            return update(loss_fn, batch, step, coefs, config, ranks)
        with contextlib.suppress(OSError):
            os.write(2, b"endless\n")
        return update(loss_fn, batch, step, coefs, replace(config, update_epochs=10**9), ranks)

    monkeypatch.setattr(SCRIPTS[script], "ppo_update", long)


def are_endless(tmp_path, ranks) -> bool:
    return all("endless\n" in said(tmp_path, rank) for rank in ranks)


@pytest.mark.parametrize(("script", "size", "victim"), [("torch", 2, 1), ("decoupled", 3, 1)])
def test_an_update_that_takes_too_long_is_given_up(tmp_path, monkeypatch, start, script, size, victim):
    """The state from before it is saved; the other ranks give up after rank 0, here when it has said so."""
    sleep, in_other_ranks = time.sleep, 12345.0

    def sleep_or_wait(seconds):
        while seconds == in_other_ranks and not re.search(STOPPED, said(tmp_path, 0)):
            sleep(0.01)
        sleep(0.0 if seconds == in_other_ranks else seconds)

    with monkeypatch.context() as patch:
        endless(patch, script, after=3)
        patch.setattr(signals_module, "GRACE_SECONDS", 0.5)
        patch.setattr(signals_module, "_AFTER_RANK_ZERO", in_other_ranks)
        patch.setattr(signals_module, "time", SimpleNamespace(sleep=sleep_or_wait, monotonic=time.monotonic))
        ranks = start(script, size)
        training = range(1 if script == "decoupled" else 0, size)
        assert wait_until(lambda: are_endless(tmp_path, training)), said(tmp_path, 0)
        assert wait_until(lambda: logged(tmp_path / "run") == 3), said(tmp_path, 0)
        os.kill(ranks[victim].pid, signal.SIGTERM)
        assert exit_codes(ranks) == [STOPPED_BY_SIGNAL] * size, said(tmp_path, 0)
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
            time.sleep(FOREVER)


gymnasium.register("Clinging-v0", Clinging, max_episode_steps=20)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_that_does_not_close_is_not_waited_for(tmp_path, monkeypatch, start, gate, backend):
    for name, seconds in (("GRACE_SECONDS", 1.0), ("_TEARDOWN_SECONDS", 0.5)):
        monkeypatch.setattr(signals_module, name, seconds)
    gate.hold(monkeypatch, "torch")
    (rank,) = start("torch", 1, env_id="Clinging-v0", env_backend=backend)
    assert wait_until(lambda: logged(tmp_path / "run") >= 3), said(tmp_path, 0)
    os.kill(rank.pid, signal.SIGTERM)
    gate.open()
    assert exit_codes([rank]) == [STOPPED_BY_SIGNAL]
    assert re.search(STOPPED, said(tmp_path, 0))
    assert checkpoints(tmp_path / "run")[0] == logged(tmp_path / "run")


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch, start):
    """Status 130, also in the middle of an update that would take days, and be waited for; the other rank follows."""
    late = StopSignals._end_late_update

    def noticed(self):
        os.write(2, b"noticed\n")
        late(self)

    endless(monkeypatch, "torch", after=2)
    monkeypatch.setattr(StopSignals, "_end_late_update", noticed)
    monkeypatch.setattr(signals_module, "_SAME_CTRL_C", 0.0)
    ranks = start("torch", 2)
    assert wait_until(lambda: are_endless(tmp_path, (0, 1))), said(tmp_path, 0)
    assert wait_until(lambda: logged(tmp_path / "run") == 2), said(tmp_path, 0)
    os.kill(ranks[0].pid, signal.SIGINT)
    assert wait_until(lambda: all("noticed\n" in said(tmp_path, rank) for rank in (0, 1)))
    assert ranks[0].is_alive()
    os.kill(ranks[0].pid, signal.SIGINT)
    assert exit_codes(ranks) == [130, STOPPED_BY_SIGNAL]
    assert said(tmp_path, 0).splitlines()[-1] == "interrupted twice"
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
    assert exit_codes([rank]) == [STOPPED_BY_SIGNAL]
    assert said(tmp_path, 0) == "stopped by SIGTERM before the training began\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["make_envs", "make_agent"])
def test_before_the_first_update_no_folder_is_left(tmp_path, start, monkeypatch, name):
    monkeypatch.setattr(SCRIPTS["torch"], name, on_call(1, 0, signal_itself, getattr(SCRIPTS["torch"], name)))
    (rank,) = start("torch", 1, env_backend="async")
    assert exit_codes([rank]) == [STOPPED_BY_SIGNAL]
    assert said(tmp_path, 0) == "stopped by SIGTERM\n"
    assert not (tmp_path / "run").exists()


def test_while_the_agent_is_tested(tmp_path, start, monkeypatch):
    """The training is over and on record; resumed, the run does the test."""
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", on_call(1, 0, signal_itself, evaluation.evaluate))
        (rank,) = start("torch", 1, updates=4)
        assert exit_codes([rank]) == [STOPPED_BY_SIGNAL]
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
    assert exit_codes([rank]) == [1]
    assert checkpoints(tmp_path / "run")[0] == 3
    assert "RuntimeError: boom" in said(tmp_path, 0)
    assert "StoppedBySignal" not in said(tmp_path, 0)


def test_nothing_interrupts_what_a_failed_run_tells(tmp_path, monkeypatch, start):
    monkeypatch.setattr(train_torch, "ppo_update", on_call(2, 0, explode, train_torch.ppo_update))
    told = on_call(1, 0, signal_itself, script_module.format_failure)
    for module in (script_module, signals_module):
        monkeypatch.setattr(module, "format_failure", told)
    (rank,) = start("torch", 1)
    assert exit_codes([rank]) == [1]
    assert said(tmp_path, 0).splitlines()[-1] == "RuntimeError: boom"
    assert "StoppedBySignal" not in said(tmp_path, 0)


def deaf():
    """Nobody reads what this process says, as after a Ctrl-C that has ended `tee` as well."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    os.dup2(write, 2)


@pytest.mark.parametrize("ends_in_time", [True, False])
def test_a_signal_works_where_nobody_listens(tmp_path, monkeypatch, start, gate, ends_in_time):
    monkeypatch.setattr(signals_module, "GRACE_SECONDS", FOREVER if ends_in_time else 1.0)
    monkeypatch.setattr(train_torch, "collect", on_call(2, 0, deaf, train_torch.collect))
    (gate.hold(monkeypatch, "torch") if ends_in_time else endless(monkeypatch, "torch", after=3))
    (rank,) = start("torch", 1)
    assert wait_until(lambda: logged(tmp_path / "run") >= 3), said(tmp_path, 0)
    os.kill(rank.pid, signal.SIGTERM)
    gate.open()
    assert exit_codes([rank]) == [STOPPED_BY_SIGNAL]
    assert checkpoints(tmp_path / "run")[0] == logged(tmp_path / "run")


class Forking(gymnasium.Env):
    """Has a process of its own, which it ends as one does."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        own = os.fork()
        if own == 0:
            time.sleep(FOREVER)
        os.kill(own, signal.SIGTERM)
        if not wait_until(lambda: os.waitpid(own, os.WNOHANG) != (0, 0)):
            os.kill(own, signal.SIGKILL)
            raise RuntimeError("it lives")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Forking-v0", Forking, max_episode_steps=20)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_signal_to_a_process_of_an_environment_is_not_the_runs(tmp_path, start, backend):
    (rank,) = start("torch", 1, updates=4, env_id="Forking-v0", env_backend=backend)
    assert exit_codes([rank]) == [0], said(tmp_path, 0)
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
def test_a_ctrl_c_to_all_leaves_an_environment_its_processes(tmp_path, monkeypatch, start, gate, backend):
    gate.hold(monkeypatch, "torch")
    (rank,) = start("torch", 1, env_id="Helped-v0", env_backend=backend, num_envs=1)
    assert wait_until(lambda: logged(tmp_path / "run") >= 3), said(tmp_path, 0)
    os.killpg(rank.pid, signal.SIGINT)
    gate.open()
    assert exit_codes([rank]) == [STOPPED_BY_SIGNAL], said(tmp_path, 0)


@pytest.mark.parametrize("victim", [0, 1])
def test_other_hosts_hear_of_a_signal(tmp_path, monkeypatch, start, gate, victim):
    """By what player and trainers send each other anyway: a signal is passed on by hand on its own host only."""
    monkeypatch.setattr(signals, "forward_to", lambda pids: None)
    gate.hold(monkeypatch, "decoupled")
    ranks = start("decoupled", 2)
    assert wait_until(lambda: logged(tmp_path / "run") >= 3), said(tmp_path, 0)
    os.kill(ranks[victim].pid, signal.SIGTERM)
    gate.open()
    assert exit_codes(ranks) == [STOPPED_BY_SIGNAL] * 2, said(tmp_path, 0)
    assert re.search(STOPPED, said(tmp_path, 0))


@pytest.mark.parametrize("is_signalled", [False, True])
@pytest.mark.parametrize("when", ["step", "reset"])
@pytest.mark.parametrize(("size", "failing"), [(1, 0), (2, 1)])
def test_a_failed_rank_whose_environment_does_not_close_ends(
    tmp_path, monkeypatch, start, size, failing, when, is_signalled
):
    """And says why, also if something has asked it to stop in the meantime, as its launcher may."""
    for name, seconds in (("GRACE_SECONDS", 0.5), ("_TEARDOWN_SECONDS", 0.5), ("_SECONDS_TO_CLOSE", 1.5)):
        monkeypatch.setattr(signals_module, name, seconds)

    def fail(*args, **kwargs):
        raise RuntimeError("no answer")

    def close(env):
        if in_rank(failing) and is_signalled:
            signal_itself()
        time.sleep(FOREVER if in_rank(failing) else 0)

    works = getattr(Clinging, when)
    monkeypatch.setattr(Clinging, when, lambda *args, **named: (fail if in_rank(failing) else works)(*args, **named))
    monkeypatch.setattr(Clinging, "close", close)
    ranks = start("torch", size, env_id="Clinging-v0")
    ended = exit_codes(ranks)
    assert ended[failing] == 1, said(tmp_path, failing)
    assert set(ended) <= ({1, STOPPED_BY_SIGNAL} if is_signalled else {1})  # a signal is passed on
    assert "Clinging-v0 environment" in said(tmp_path, failing)
    assert "RuntimeError: no answer" in said(tmp_path, failing)


def in_rank(rank: int) -> bool:
    return os.environ.get("RANK", "0") == str(rank)


NOTED_ENV = """
from pathlib import Path
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Noted(CartPoleEnv):
    def step(self, action):
        Path("stepped").touch()
        return super().step(action)

gymnasium.register("Noted-v0", Noted)
"""


def test_the_script_itself(tmp_path):
    """Not forked: an update of a thousand million epochs, and a signal once the run has begun to act."""
    (tmp_path / "noted.py").write_text(NOTED_ENV)
    flags = ["--update-epochs", "1000000000", "--num-threads", "1", "--run-dir", "run", "--env-id", "noted:Noted-v0"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_torch.py"), *flags],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    try:
        assert wait_until(lambda: (tmp_path / "stepped").exists() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=PATIENCE)
    finally:
        kill_tree(process.pid)
    assert process.returncode == STOPPED_BY_SIGNAL
    assert text.splitlines()[-1] == "stopped by SIGTERM; nothing to save before the first update"
    assert "Traceback" not in text


UPDATES_THAT_ALWAYS_END = "from fabric_ppo.process import signals\nsignals.GRACE_SECONDS = 1e6"


def test_a_launcher_that_is_asked_to_stop(tmp_path):
    """`torchrun` passes SIGTERM on to all ranks, and reports a failure of its own."""
    flags = ["--total-timesteps", "100000000", "--num-steps", "64", "--run-dir", str(tmp_path / "run")]
    path = patched_script(tmp_path, "torch", UPDATES_THAT_ALWAYS_END)
    with (tmp_path / "out.txt").open("wb") as out:
        process = subprocess.Popen(
            command("torch", 2, *flags, path=path), cwd=tmp_path, stdout=out, stderr=out, env=clean_environment()
        )
    try:
        assert wait_until(lambda: logged(tmp_path / "run") >= 2), (tmp_path / "out.txt").read_text()
        everything = [process.pid, *descendants(process.pid)]
        process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: process.poll() is not None)
        assert wait_until(lambda: not any(alive(pid) for pid in everything))
    finally:
        kill_tree(process.pid)
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
from fabric_ppo.process import script
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.signals import signals
script._SECONDS_FOR_RANK_ZERO = 1e6
signals.install()
class Wrong(ConfigError):
    def __str__(self):
        print("fails", flush=True)  # its message is read when no signal raises anything any more
        return super().__str__()
def main(config):
    raise Wrong("--flag: wrong")
script.run_script(main, None)
"""
    rank = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert rank.stdout.readline() == "fails\n"
    rank.terminate()
    assert rank.communicate(timeout=PATIENCE)[1] == ""
    assert rank.returncode == 2


def test_what_python_swallows_is_not_told_as_a_failure():
    """A signal that comes while an object is being deleted; another error there is told as ever."""
    code = """
import os, signal, time
from fabric_ppo.process import signals as signals_module
from fabric_ppo.process.signals import signals
signals_module.GRACE_SECONDS = 1e6
signals.install()
signals.guard()
class Deleted:
    def __init__(self, action):
        self.action = action
    def __del__(self):
        self.action()
def be_stopped():
    os.kill(os.getpid(), signal.SIGTERM)
    while True:  # until the signal is handled, which raises
        time.sleep(0.01)
deleted = Deleted(be_stopped)
del deleted
print(signals.name)
deleted = Deleted(lambda: 1 / 0)
del deleted
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "SIGTERM\n"
    assert "StoppedBySignal" not in done.stderr
    assert "ZeroDivisionError" in done.stderr
