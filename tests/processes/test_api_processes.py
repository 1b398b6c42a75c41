"""`train` from Python beside the script that it stands for, and in a program of one's own."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process import signals
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.run.result import load_run
from tests.fixtures.configs import TINY
from tests.fixtures.launching import ROOT, clean_environment, command, in_fork, run
from tests.fixtures.processes import PATIENCE


def test_train_leaves_what_the_script_leaves(tmp_path):
    trained = train(Config(**TINY, log_dir=str(tmp_path)))
    flags = [word for name, value in TINY.items() for word in ("--" + name.replace("_", "-"), str(value))]
    done = run(command("torch", 1, *flags, "--run-dir", str(tmp_path / "script")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert trained.run_dir.parent.parent == tmp_path
    name = "policy.safetensors"
    assert (trained / name).read_bytes() == (tmp_path / "script" / name).read_bytes()
    assert (trained / "summary.json").is_file()


def test_a_training_that_fails_does_not_end_the_program_around_it(tmp_path):
    """As it ends a script whose environment does not close."""

    def program():
        signals._SECONDS_TO_CLOSE = 0.2
        with pytest.raises(EnvironmentFault):
            train(Config(**TINY, env_id="tests.fixtures.toy_envs:ToyRaise-v0", run_dir=str(tmp_path / "run")))
        time.sleep(0.6)
        return "goes on"

    assert in_fork(program) == "goes on"


SEVERAL = """
import os
import sys

from fabric_ppo import Callback, Config, train


class Sets(Callback):
    def __init__(self, seen):
        self.seen = seen

    def on_update(self, run, metrics):
        self.seen.append(run.update)
        run.envs.set(length=0.5 + 0.1 * run.update)


if __name__ == "__main__":
    folder, flags, seen = sys.argv[1], eval(sys.argv[2]), []
    run = train(Config(**flags, run_dir=folder), callbacks=[Sets(seen)], verbose=False)
    assert seen == ([] if os.environ["RANK"] != "0" else [4, 5] if "resume" in flags else [1, 2, 3]), seen
"""


def test_several_ranks_train_with_objects_and_print_nothing(tmp_path):
    """Under torchrun, each runs the same program; the callbacks of rank 0 are called. It resumes, too."""
    program = tmp_path / "program.py"
    program.write_text(SEVERAL)
    flags = TINY | {"total_timesteps": 384, "capture_video": True, "eval_every": 2, "eval_episodes": 1}
    words = command("torch", 2, str(tmp_path / "run"), repr(flags), path=str(program))
    quiet = clean_environment(OMP_NUM_THREADS="1")  # or torchrun prints a warning
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, env=quiet)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    again = flags | {"total_timesteps": 640, "resume": True}
    words = command("torch", 2, str(tmp_path / "run"), repr(again), path=str(program))
    done = run(words, tmp_path)
    assert "Error" not in done.stderr
    assert load_run(tmp_path / "run").summary["updates"] == 5


OWN = """
print("a file of one's own")

def main(*given):
    raise ValueError
"""
PROGRAM = f"""
from fabric_ppo import Config, train
train(Config(**{TINY!r}, run_dir="first"), verbose=False)
import train_torch
train(Config(**{TINY!r}, run_dir="second"), verbose=False)
"""
FLAGS = [word for name, value in TINY.items() for word in ("--" + name.replace("_", "-"), str(value))]


@pytest.mark.parametrize(
    ("words", "imports"),
    [
        (["program.py"], 1),
        (["-m", "fabric_ppo", "train", "torch", *FLAGS, "--run-dir=second"], 0),
        (["-m", "fabric_ppo", "train", "torch", "--devices=2", *FLAGS, "--run-dir=second"], 0),
    ],
    ids=["train", "command", "ranks"],
)
def test_a_file_of_ones_own_with_the_name_of_a_script_is_not_trained(words, imports, tmp_path):
    """It lies where Python looks first, and stays what `import` finds."""
    (tmp_path / "train_torch.py").write_text(OWN)
    (tmp_path / "program.py").write_text(PROGRAM)
    env = clean_environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    args = [sys.executable, *words]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a file of one's own") == imports
    assert (tmp_path / "second/summary.json").is_file()
