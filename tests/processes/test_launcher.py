"""`train` with several ranks ends as one rank does: with the run's own line, and its status."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE

ENV = """
import os, signal
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Own(CartPoleEnv):
    steps = 0

    def step(self, action):
        Own.steps += 1
        if Own.steps == 40 and os.environ["RANK"] == "0":
            what = os.environ["WHAT"]
            if what == "fault":
                raise ValueError("a fault")
            # a terminal's Ctrl-C and a scheduler's signal come to the launcher
            os.kill(os.getpid() if what == "SIGKILL" else os.getppid(), getattr(signal, what))
        return super().step(action)

gymnasium.register("Own-v0", Own, max_episode_steps=30)
"""
FLAGS = ["--env-id=own_env:Own-v0", "--num-steps=16", "--num-envs=1", "--total-timesteps=1000000", "--run-dir=run"]
FLAGS += ["--num-threads=1", "--timeout=1e6", "--quiet"]


def launched(folder, script: str, what: str) -> subprocess.CompletedProcess[str]:
    (folder / "own_env.py").write_text(ENV)
    words = [sys.executable, "-m", "fabric_ppo", "train", script, "--devices=2", *FLAGS]
    env = clean_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), WHAT=what)
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("script", "what"),
    [("torch", "SIGINT"), ("torch", "SIGUSR1"), ("fabric", "SIGINT"), ("fabric", "SIGTERM"), ("decoupled", "SIGINT")],
)
def test_a_signal_to_the_launcher_ends_the_run_as_that_of_one_rank(script, what, tmp_path):
    done = launched(tmp_path, script, what)
    (line,) = done.stderr.splitlines()
    # the rank that it reaches first passes it on to the other
    assert re.fullmatch(rf"stopped by {what}; saved .*\.ckpt: go on with cd .* train {script} --devices=2 .*", line)
    assert done.returncode == 75


def test_a_fault_is_told_once_with_its_status(tmp_path):
    done = launched(tmp_path, "torch", "fault")
    assert done.returncode == 1
    assert done.stderr.count("step raised ValueError: a fault") == 1
    assert "ChildFailedError" not in done.stderr
    assert "exitcode" not in done.stderr


def test_a_rank_that_could_print_nothing_is_named(tmp_path):
    done = launched(tmp_path, "torch", "SIGKILL")
    assert done.returncode == 1
    assert "error: rank 0 was ended by SIGKILL\n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 75, "stopped by SIGINT before the training began\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 75, "stopped by SIGTERM before the training began\n"),
        ("torch_run([path, 'exit 2'])", 2, ""),
        ("torch_run([path, 'exit 3'])", 3, ""),
        ("torch_run([path, 'exit 0'])", 0, ""),
    ],
)
def test_the_status_of_a_launcher(code, status, text, tmp_path):
    """Before it has ranks, and with what these end with."""
    (tmp_path / "own_launcher.py").write_text(f"""
import os, signal
def torch_run(words):
    from torch.distributed.run import main
    main(["--nproc_per_node=2", "--no-python", *words])
path = "./rank.sh"
{code}
""")
    (tmp_path / "rank.sh").write_text("#!/bin/sh\n$1\n")
    (tmp_path / "rank.sh").chmod(0o755)
    words = [sys.executable, "-m", "fabric_ppo.tools.launcher", "own_launcher"]
    env = clean_environment(OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT}:{tmp_path}")
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (status, text)


@pytest.mark.parametrize(("script", "host"), [("torch", "0"), ("torch", "1"), ("fabric", "0"), ("decoupled", "1")])
def test_hosts_that_do_not_meet_are_one_line(script, host, tmp_path):
    """Host 0 finds its port taken, by another run maybe; host 1 finds nobody who answers as host 0 would."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        if host == "0":
            taken.listen()
        port = str(taken.getsockname()[1])
        words = [sys.executable, "-m", "fabric_ppo", "train", script, "--num-nodes=2", f"--node-rank={host}"]
        env = clean_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), PET_RDZV_CONF="timeout=1")
        words += ["--main-address=127.0.0.1", f"--main-port={port}", "--quiet"]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    expected = "this host uses the port already: --main-port takes another, the same on all hosts"
    expected = expected if host == "0" else "not all hosts met in time"
    *others, line = done.stderr.splitlines()
    assert others == [] or host == "1", "on which PyTorch logs the same before"
    assert "Traceback" not in done.stderr
    assert line.startswith(f"error: rendezvous at 127.0.0.1:{port}: {expected}")
    assert (done.returncode, done.stdout) == (2, "")
    assert [*tmp_path.iterdir()] == []


ASKED = """
import os, signal
from fabric_ppo.tools import cli
from fabric_ppo.tools.commands import evaluate, train

def asked(*_):
    os.kill(os.getpid(), signal.SIGINT)

train.resolve = evaluate.evaluate_parser = asked
cli.console()
"""


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [
        (["train", "torch", "--devices", "2"], 75, "stopped by SIGINT before the training began\n"),
        (["train", "torch"], 75, "stopped by SIGINT before the training began\n"),
        (["evaluate", "run"], 130, "interrupted\n"),
    ],
)
def test_ctrl_c_as_a_command_begins_is_one_line(command, status, text, tmp_path):
    env = clean_environment(PYTHONPATH=str(ROOT))
    words = [sys.executable, "-c", ASKED, *command]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (status, text)
    assert [*tmp_path.iterdir()] == []
