"""Runs that are resumed with other flags, on another machine, or in environments that cannot be brought back."""

from __future__ import annotations

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from fabric_ppo.process.errors import flag
from fabric_ppo.process.files import Checkpoint
from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE
from tests.fixtures.resuming import TINY, finish, metrics, newest_checkpoint, summary, train


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of three updates, finished."""
    return finish("torch", 1, tmp_path_factory.mktemp("half") / "run", updates=3, anneal_lr=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gamma": 0.5}, "--gamma 0.5 (the run has 0.99)"),
        ({"num_envs": 3}, "--num-envs 3 (the run has 2)"),
        ({"num_steps": 24}, "--num-steps 24 (the run has 16)"),
        ({"hidden_sizes": (8,)}, "--hidden-sizes [8] (the run has [64, 64])"),
        ({"env_id": "Pendulum-v1"}, "--env-id Pendulum-v1 (the run has CartPole-v1)"),
        ({"total_timesteps": 64}, "--total-timesteps 64: the run had 96; that or more is expected"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_run_that_is_refused_is_left_as_it_was(half, change, said):
    """Before anything is cut back or written."""
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    flags = {"anneal_lr": False, "resume": True, "total_timesteps": 96} | change
    (error,) = train("torch", 1, half, **flags)
    assert f"ConfigError: {'' if 'expected' in said else '--resume: '}{said}" in error
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == before


def test_on_the_command_line_it_is_one_line_and_status_2(half):
    args = [sys.executable, str(ROOT / "train_torch.py"), "--resume", "--run-dir", str(half)]
    args += [f"{flag(name)}={value}" for name, value in TINY.items()]
    args += ["--no-anneal-lr", "--gamma=0.5", "--total-timesteps=96"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=PATIENCE, env=clean_environment())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --resume: --gamma 0.5 (the run has 0.99): the run's own values are expected; ")


def test_without_resume_a_folder_with_a_run_is_refused(half):
    (error,) = train("torch", 1, half, anneal_lr=False)
    assert "holds a run already; a new folder or --resume is expected" in error


def test_flags_that_may_differ_do(tmp_path, half):
    """All at once, and the result is that of the run that had them from the start, or not at all."""
    expected = finish("torch", 1, tmp_path / "expected", anneal_lr=False)
    finish("torch", 1, tmp_path / "run", updates=3, anneal_lr=False)
    anew = {"stop_at_return": 1e9, "checkpoint_every": 1, "keep_checkpoints": 5, "env_backend": "async"}
    anew |= {"env_start_method": "spawn"}
    anew |= {"env_timeout": 2000.0, "restart_envs": True, "timeout": 2000.0, "exp_name": "x", "init_from": "nowhere"}
    finish("torch", 1, tmp_path / "run", resume=True, anneal_lr=False, **anew)
    policies = [(path / "policy.safetensors").read_bytes() for path in (tmp_path / "run", expected)]
    assert policies[0] == policies[1]
    assert summary(tmp_path / "run")["exact_resume"] is True


def test_threads_may_differ_but_it_is_no_exact_resume(tmp_path, capfd):
    finish("torch", 1, tmp_path / "run", updates=2, anneal_lr=False)
    finish("torch", 1, tmp_path / "run", updates=3, anneal_lr=False, resume=True, num_threads=2)
    line = "resumed with another number of threads, 2 (before 1): the result will not be the same bit for bit"
    assert [each for each in capfd.readouterr().err.splitlines() if "resumed with" in each] == [line]
    assert summary(tmp_path / "run")["exact_resume"] is False


def test_after_another_version_of_a_library_it_is_no_exact_resume(tmp_path, monkeypatch, capfd):
    finish("torch", 1, tmp_path / "run", updates=2, anneal_lr=False)
    version = np.__version__
    monkeypatch.setattr(np, "__version__", "99.0")
    finish("torch", 1, tmp_path / "run", updates=3, anneal_lr=False, resume=True)
    line = f"resumed with other libraries, numpy 99.0 (before {version}): the result will not be the same bit for bit"
    assert [each for each in capfd.readouterr().err.splitlines() if "resumed with" in each] == [line]
    assert summary(tmp_path / "run")["exact_resume"] is False


OWN_ENV = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
from its_physics import GRAVITY

class Own(CartPoleEnv):
    def __init__(self):
        super().__init__()
        self.gravity = GRAVITY

gymnasium.register("Own-v0", Own, max_episode_steps=30)
"""


@pytest.mark.parametrize("changed", ["", "own_env.py", "its_physics.py", "other.py"])
def test_after_an_edit_of_the_code_the_line_names_the_file(tmp_path, changed):
    """Of the environment or of what it imports; of a file that has nothing to do with it, or none, nothing is said."""
    (tmp_path / "own_env.py").write_text(OWN_ENV)
    (tmp_path / "its_physics.py").write_text("GRAVITY = 9.8\n")
    (tmp_path / "other.py").write_text("")
    start = [sys.executable, str(ROOT / "train_torch.py"), "--run-dir=run", "--resume", "--env-id=own_env:Own-v0"]
    start += [f"{flag(name)}={value}" for name, value in TINY.items()] + ["--no-anneal-lr"]
    printed = []
    for total in (96, 128):
        run = subprocess.run(
            [*start, f"--total-timesteps={total}"],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        printed.append([line for line in run.stderr.splitlines() if "changed code" in line or "resumed with " in line])
        if changed:
            with (tmp_path / changed).open("a") as file:
                file.write("# an edit\n")
    expected = f"resumed with changed code ({changed}): the run goes on with the code as it is now"
    is_said = changed not in ("", "other.py")
    assert printed == [[], [expected] if is_said else []]
    assert summary(tmp_path / "run")["exact_resume"] is not is_said


class Drifting(gymnasium.Env):
    """Draws from the operating system."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.array([int.from_bytes(os.urandom(3), "little") / 2**24, 0], np.float32), 1.0, False, False, {}


gymnasium.register("Drifting-v0", Drifting, max_episode_steps=30)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_that_is_not_repeatable_is_resumed_with_a_warning(tmp_path, capfd, backend):
    flags = {"env_id": "Drifting-v0", "anneal_lr": False, "env_backend": backend}
    finish("torch", 2, tmp_path / "run", updates=3, **flags)
    capfd.readouterr()
    finish("torch", 2, tmp_path / "run", resume=True, **flags)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    reason = "its observation differs after the same actions"
    assert f"warning: Drifting-v0 cannot be resumed exactly: environment 0: {reason}" in warnings
    assert f"warning: Drifting-v0 cannot be resumed exactly: environment 2: {reason}" in warnings
    assert len(warnings) == 2
    assert summary(tmp_path / "run")["exact_resume"] is False
    assert [line["update"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    # once not exact, it stays so
    finish("torch", 2, tmp_path / "run", updates=7, resume=True, **flags)
    assert summary(tmp_path / "run")["exact_resume"] is False


def test_a_checkpoint_of_another_make_does_not_fit(tmp_path):
    """Whole, with the right flags, but with other weights."""
    finish("torch", 1, tmp_path / "run", updates=2, anneal_lr=False)
    name, found = newest_checkpoint(tmp_path / "run")
    tensors = {key: value for key, value in found.tensors.items() if not key.startswith("weights.policy")}
    (tmp_path / "run/checkpoints" / name).write_bytes(Checkpoint(tensors, found.values).to_bytes())
    (said,) = train("torch", 1, tmp_path / "run", anneal_lr=False, resume=True)
    assert "ConfigError: --resume: the checkpoint in " in said
    assert "does not fit this run" in said


@pytest.mark.parametrize(("anneals", "names"), [(True, "--learning-rate"), (False, "")])
def test_a_longer_run_prints_what_it_does_to_the_schedules(tmp_path, capfd, anneals, names):
    """Three updates of three: nothing was left of the rate; of six, half is."""
    run_dir = finish("torch", 1, tmp_path / "run", updates=3, anneal_lr=anneals)
    capfd.readouterr()
    finish("torch", 1, run_dir, updates=6, anneal_lr=anneals, resume=True)
    lines = [
        line for line in capfd.readouterr().err.splitlines() if line.startswith("--total-timesteps 192, before 96: ")
    ]
    said = f"now {names} falls to zero over the new total, and goes on from 50% of its value instead of 0%"
    assert [line.partition(": ")[2] for line in lines] == ([said] if names else [])
