"""Ids of environments: retired ones, unknown ones, and those of the user's own modules."""

from __future__ import annotations

import dataclasses

import gymnasium
import pytest

from fabric_ppo.config import Config
from fabric_ppo.run.resolve import resolve
from tests.fixtures.flags import accepted, refusal

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
    ],
)
def test_an_unknown_id_names_the_nearest(env_id, nearest):
    message = refusal(["--env-id", env_id])
    assert message.startswith(f"--env-id {env_id}: ")
    assert nearest in message


def test_an_id_that_is_like_none():
    assert refusal(["--env-id", "qqqqqqqq"]).startswith("--env-id qqqqqqqq: unknown environment; ")


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
