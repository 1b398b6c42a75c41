"""`train` from Python beside the script that it stands for, and in a program of one's own."""

from __future__ import annotations

import time

import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process import signals
from fabric_ppo.process.errors import EnvironmentFault
from tests.fixtures.configs import TINY
from tests.fixtures.launching import command, in_fork, run


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
