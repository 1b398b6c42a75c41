"""Ids of environments: retired ones, unknown ones, and those of the user's own modules."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys

import gymnasium
import pytest

from fabric_ppo.config import Config
from fabric_ppo.envs import ids
from fabric_ppo.process import command
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools import cli
from tests.fixtures.flags import accepted, refusal
from tests.fixtures.launching import ROOT

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_a_retired_id_resolves_to_its_successor_with_one_line(capsys):
    config = accepted(["--env-id", "LunarLander-v2"])
    printed = capsys.readouterr()
    assert config.env_id == config.to_dict()["env_id"] == "LunarLander-v3"
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "LunarLander-v2" in printed.err
    assert "LunarLander-v3" in printed.err
    assert resolve(dataclasses.replace(config, seed=3)).env_id == "LunarLander-v3"
    assert resolve(Config(env_id="LunarLander-v2")).env_id == "LunarLander-v3"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("prefix", ["", "gymnasium:"])
@pytest.mark.parametrize(("name", "version"), [("HalfCheetah", 3), ("HalfCheetah", 2), ("Reacher", 2), ("Humanoid", 3)])
def test_an_id_whose_environment_has_moved_out_names_the_one_that_stayed(name, version, prefix):
    """Another package has the old one: it is for the user to choose."""
    newest = gymnasium.envs.registration.find_highest_version(None, name)
    message = refusal(["--env-id", f"{prefix}{name}-v{version}"])
    assert message.startswith(f"--env-id {prefix}{name}-v{version}: ")
    assert "gymnasium-robotics" in message
    assert message.endswith(f"its successor {prefix}{name}-v{newest} is expected")


def test_an_id_that_has_moved_out_without_a_successor():
    assert "shimmy" in (message := refusal(["--env-id", "GymV21Environment-v0"]))
    assert "successor" not in message


def test_ids_that_run_are_left_alone(capsys):
    for env_id in ("CartPole-v0", "CartPole-v1", "LunarLanderContinuous-v3", "Acrobot-v1"):
        assert accepted(["--env-id", env_id]).env_id == env_id
    assert accepted(["--env-id", "LunarLander"]).env_id == "LunarLander-v3"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("env_id", "nearest"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("LunarLandr-v2", "LunarLander-v3"),
        ("CartPole-v9", "CartPole-v1"),
        ("LunarLander-v9", "LunarLander-v3"),
        ("HalfCheeta-v4", "HalfCheetah-v5"),
        ("Mountaincarcontinous-v0", "MountainCarContinuous-v0, MountainCar-v0"),
        ("ant", "Ant-v5"),
        ("ALE/Pnog-v5", "ALE/Pong-v5"),
    ],
)
def test_an_unknown_id_names_the_nearest(env_id, nearest):
    """By the name: versions are much alike."""
    message = refusal(["--env-id", env_id])
    assert message.startswith(f"--env-id {env_id}: unknown environment; did you mean {nearest}")
    assert message.endswith(f"? One of your own, or of a package, is module:{env_id}")


ELSEWHERE = {
    "MiniGrid-Empty-5x5-v0": "minigrid:MiniGrid-Empty-5x5-v0 is expected",
    "BabyAI-GoToObj-v0": "minigrid:BabyAI-GoToObj-v0 is expected",
    "Pong-v5": "ALE/Pong-v5 is expected, mostly with --env-preset atari",
    "PongNoFrameskip-v4": "ale_py:PongNoFrameskip-v4 is expected, mostly with --env-preset atari",
}


@pytest.mark.processes
@pytest.mark.parametrize("env_id", ELSEWHERE)
def test_an_id_that_another_package_registers_names_it(env_id):
    """In a process of its own: in this one the package may have been imported."""
    pytest.importorskip("minigrid" if ELSEWHERE[env_id].startswith("minigrid") else "ale_py")
    code = "import sys; from fabric_ppo.envs.ids import resolve_env_id; resolve_env_id(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, env_id], cwd=ROOT, capture_output=True, text=True)
    line = done.stderr.splitlines()[-1]
    assert line.endswith(f"ConfigError: --env-id {env_id}: unknown environment; {ELSEWHERE[env_id]}")


@pytest.mark.parametrize("env_id", ["Pong-v5", "ALE/Pong-v5", "ale_py:ALE/Pong-v5", "ale_py:PongNoFrameskip-v4"])
def test_a_game_may_be_named_with_its_module(env_id):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    expected = "ALE/Pong-v5" if env_id == "Pong-v5" else env_id
    assert ids.resolve_env_id(env_id, "atari") == expected


@pytest.mark.parametrize("env_id", ["qqqqqqqq", "Grid-v0", "A-v1", "my_envs.py"])
def test_an_id_that_is_like_none(env_id):
    """As one of the user's own, without its module."""
    own = "Env-v0" if env_id == "my_envs.py" else env_id
    hint = f"an id that gymnasium.make takes is expected; one of your own, or of a package, is module:{own}"
    assert refusal(["--env-id", env_id]) == f"--env-id {env_id}: unknown environment; {hint}"


@pytest.mark.parametrize(
    ("written", "module"),
    [
        *[("mine.py", "mine"), ("./mine.py", "mine"), ("mine/", "mine"), ("pack/mine.py", "pack.mine")],
        *[("pack/mine", "pack.mine"), ("/home/me/mine.py", "mine"), ("../mine.py", "mine")],
    ],
)
@pytest.mark.parametrize("name", ["--env-id", "--env-wrapper", "--encoder", "--callback", "--track"])
def test_a_file_in_place_of_its_module(name, written, module, tmp_path, monkeypatch):
    """Also where it is there."""
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    message = f"{name} {written}:Own-v0: {module}:Own-v0 is expected, a module and not its file"
    assert refusal([name, f"{written}:Own-v0"]) == message


@pytest.mark.parametrize("name", ["--env-id", "--env-wrapper", "--encoder", "--callback", "--track"])
def test_a_module_that_is_missing_is_named_with_its_place(name, tmp_path, monkeypatch):
    """In a folder above the run's, or above the working directory; nothing in it is imported."""
    module = "module_in_a_project"
    (tmp_path / f"{module}.py").write_text("raise AssertionError('imported')")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "project" / "logs" / "run").mkdir(parents=True)
    (tmp_path / f"{module}.py").rename(tmp_path / "project" / f"{module}.py")
    monkeypatch.chdir(tmp_path / "elsewhere")
    given, missing = [name, f"{module}:Own-v0"], f"cannot be imported (No module named '{module}'), "
    nowhere = f"not to be found in {tmp_path / 'elsewhere'} or where PYTHONPATH says: "
    nowhere += "PYTHONPATH=FOLDER imports from another folder"
    assert refusal(given) == f"{name} {module}:Own-v0: {missing}{nowhere}"
    there = f"to be found in {tmp_path / 'project'}: PYTHONPATH={tmp_path / 'project'} imports from there"
    resumes = ["--run-dir", str(tmp_path / "project" / "logs" / "run"), "--resume"]
    assert refusal([*given, *resumes]) == f"{name} {module}:Own-v0: {missing}{there}"
    monkeypatch.chdir(tmp_path / "project" / "logs")
    assert refusal(given) == f"{name} {module}:Own-v0: {missing}{there}"


def test_a_hint_names_the_flag_of_commands_that_have_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with_flag = []
    for name in cli.COMMANDS:
        with contextlib.suppress(SystemExit):
            cli.main([name, "--help"])
        with_flag += [name] if "--code-dir" in capsys.readouterr().out else []
    assert sorted(ids.TAKE_CODE_DIR) == sorted(with_flag)
    for name in ("", *cli.COMMANDS):
        token = command.running.set(name)
        hint = ids.where_missing(["no_such_module"], tmp_path).partition(": ")[2]
        command.running.reset(token)
        code_dir = f"{name} --code-dir FOLDER, or PYTHONPATH=FOLDER," if name in with_flag else "PYTHONPATH=FOLDER"
        assert hint == f"{code_dir} imports from another folder"


MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("FromModule-v2", CartPoleEnv)
"""


def test_ids_of_the_users_own_modules(tmp_path, monkeypatch):
    """`module:Env-v0`, the module lying where the user is."""
    (tmp_path / "module_of_the_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    env_id = "module_of_the_user:FromModule-v2"
    assert accepted(["--env-id", env_id]).env_id == env_id
    assert "did you mean" in refusal(["--env-id", "module_of_the_user:FromModul-v2"])
    assert "no_such_module" in refusal(["--env-id", "no_such_module:FromModule-v2"]).partition(": ")[2]
