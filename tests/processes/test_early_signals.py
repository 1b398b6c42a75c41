"""A signal in the first moments of a process, before it handles any, is remembered: the run ends with status 75.

A `sitecustomize.py` in the path of Python sends it, where no line of ours has run yet, or as the first is imported.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE

SITE = """
import importlib.abc, os, signal, sys

here = " ".join(sys.orig_argv)
role = "launcher" if "fabric_ppo.tools.launcher" in here else "script" if "train_" in here else "command"
role = "rank" + os.environ["RANK"] if "RANK" in os.environ else role

def send():
    if os.environ["ROLE"] == role and not os.path.exists("sent"):
        open("sent", "w").close()
        os.kill(os.getpid(), int(os.environ["NUMBER"]))

class Sender(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == os.environ["AT"]:
            send()

sys.meta_path.insert(0, Sender())
if os.environ["AT"] == "once":
    send()
"""
FLAGS = ["--total-timesteps=512", "--num-steps=64", "--num-threads=1", "--run-dir=run", "--quiet", "--test-episodes=1"]
TRAIN = ["-m", "fabric_ppo", "train"]
EARLY = "stopped by {} before the training began\n"


def end_of(words, folder, role, number, at="once"):
    """Status of a command one of whose processes gets a signal, and what it prints on stderr."""
    (folder / "sitecustomize.py").write_text(SITE)
    env = clean_environment(PYTHONPATH=f"{folder}:{ROOT}", OMP_NUM_THREADS="1", ROLE=role, NUMBER=str(number), AT=at)
    words = [sys.executable, *words, *FLAGS]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert (folder / "sent").exists()
    assert not (folder / "run").exists()
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "role", "at"),
    [
        ([*TRAIN, "torch"], "script", "once"),
        ([*TRAIN, "torch", "--devices=2"], "launcher", "once"),
        ([*TRAIN, "torch"], "command", "fabric_ppo.tools"),
    ],
)
def test_it_ends_the_run_in_one_line(words, role, at, number, tmp_path):
    assert end_of(words, tmp_path, role, number, at) == (75, EARLY.format(signal.Signals(number).name))


@pytest.mark.parametrize("script", ["torch", "fabric", "decoupled"])
def test_so_do_the_scripts(script, tmp_path):
    words = [str(ROOT / {"decoupled": "train_fabric_decoupled.py"}.get(script, f"train_{script}.py"))]
    assert end_of(words, tmp_path, "script", signal.SIGUSR1, "fabric_ppo.config") == (75, EARLY.format("SIGUSR1"))


@pytest.mark.parametrize("script", ["torch", "fabric", "decoupled"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_has_just_begun_ends_as_one(script, rank, tmp_path):
    """The other one may be ended before it can print, or is told by its launcher."""
    status, text = end_of([*TRAIN, script, "--devices=2"], tmp_path, f"rank{rank}", signal.SIGUSR1)
    assert status == 75
    assert text in ("", EARLY.format("SIGUSR1"), EARLY.format("SIGTERM"), "stopped by SIGTERM\n")
