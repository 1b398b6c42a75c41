"""Commands that a run prints at its end, pasted: into a shell in another folder, or into the program."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.configs import TINY
from tests.fixtures.copies import copy_of_the_repository
from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE

ENV = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Own(CartPoleEnv):
    pass

gymnasium.register("Own-v0", Own, max_episode_steps=30)
"""
WRAPPER = """
def wrap(env):
    return env
"""
PROGRAM = """
from fabric_ppo import Config, train
train(Config(env_id={env_id!r}, **{flags}))
"""


def environment(**more: str) -> dict[str, str]:
    """A shell in which `python` is this one, and the package is installed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return clean_environment(PATH=path) | {"PYTHONPATH": str(ROOT)} | more


def output(words: list[str], folder: Path, **more: str) -> str:
    """What a program prints in a folder."""
    env = environment(**more)
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pasted(line: str, folder: Path) -> str:
    """What a line prints that is pasted into a new shell, which knows neither the interpreter nor the package."""
    env = clean_environment(PATH="/usr/bin:/bin")
    options = {"cwd": folder, "env": env, "capture_output": True, "text": True, "timeout": PATIENCE}
    done = subprocess.run(line, shell=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def printed(text: str, what: str) -> str:
    """The command behind a word at the end of a training."""
    (line,) = [line for line in text.splitlines() if line.startswith(what)]
    return line[len(what) :].strip()


def flags(**values: object) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, **values}.items()]


@pytest.fixture
def folder(tmp_path):
    """A folder with a name that a shell would read otherwise, with an environment and a wrapper in it."""
    here = tmp_path / "it's $HOME; here"
    (here / "more parts").mkdir(parents=True)
    (here / "own_env.py").write_text(ENV)
    (here / "own_wrapper.py").write_text(WRAPPER)
    (here / "more parts" / "far_wrapper.py").write_text(WRAPPER)
    (tmp_path / "elsewhere").mkdir()
    return here


@pytest.mark.parametrize("env_wrapper", [None, "own_wrapper:wrap", "far_wrapper:wrap"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "own_env:Own-v0"])
def test_again_works_from_elsewhere(folder, env_id, env_wrapper):
    """Also where modules lie in two folders."""
    words = [sys.executable, str(ROOT / "train_torch.py"), *flags(env_id=env_id, run_dir="a run")]
    words += [f"--env-wrapper={env_wrapper}"] if env_wrapper else []
    path = os.pathsep.join([str(ROOT), str(folder / "more parts")])
    trained = output(words, folder, PYTHONPATH=path)
    assert printed(trained, "curves") == f"tensorboard --logdir {shlex.quote(str(folder / 'a run'))}"
    assert "100 episodes" in pasted(printed(trained, "again"), folder.parent / "elsewhere")


def test_again_is_played_by_the_clone_that_trained(folder, tmp_path):
    """Also where another one is installed, and the script was started in another folder."""
    clone = copy_of_the_repository(tmp_path / "my clone")
    (clone / "fabric_ppo/__main__.py").write_text(
        "from fabric_ppo.tools.cli import console\nprint('the clone')\nif __name__ == '__main__':\n    console()\n"
    )
    words = [sys.executable, str(clone / "train_torch.py"), *flags(run_dir="a run")]
    again = printed(output(words, folder, PYTHONPATH=""), "again")
    assert "the clone" in pasted(again, folder.parent / "elsewhere")


def test_an_environment_finds_its_files_by_the_folder_that_training_began_in(folder):
    (folder / "own_env.py").write_text(ENV + "\nopen('own_env.py').close()\n")
    words = [sys.executable, str(ROOT / "train_torch.py"), *flags(env_id="own_env:Own-v0", run_dir="a run")]
    assert "100 episodes" in pasted(printed(output(words, folder), "again"), folder.parent / "elsewhere")


@pytest.mark.parametrize("env_id", ["__main__:Own-v0", "Own-v0"])
def test_again_is_python_where_the_program_has_the_environment(folder, env_id):
    """In its own process, since no other one has it."""
    text = ENV + PROGRAM.format(env_id=env_id, flags=dict(TINY, run_dir="a run"))
    (folder / "program.py").write_text(text)
    again = printed(output([sys.executable, "program.py"], folder), "again")
    assert again.startswith("from fabric_ppo import evaluate; evaluate(")
    (folder / "program.py").write_text(ENV + again.replace("; evaluate", "; result = evaluate") + "\nprint(result)")
    said = output([sys.executable, str(folder / "program.py")], folder.parent / "elsewhere")
    assert "episodes=100" in said


def test_again_is_for_a_shell_where_a_module_has_the_environment(folder):
    (folder / "program.py").write_text(PROGRAM.format(env_id="own_env:Own-v0", flags=dict(TINY, run_dir="a run")))
    again = printed(output([sys.executable, "program.py"], folder), "again")
    assert "100 episodes" in pasted(again, folder.parent / "elsewhere")
