"""Keyword arguments of an environment's constructor: as JSON, in YAML and from Python, and those that are refused."""

from __future__ import annotations

import enum
import json

import numpy as np
import pytest
import yaml

from fabric_ppo.config import Config
from fabric_ppo.config_arguments import arguments_of, json_text
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures.flags import accepted, refusal

pytestmark = pytest.mark.usefixtures("no_launcher")
GIVEN = {"wind_power": 3.5, "enable_wind": True, "text": 'a "b" ü', "nothing": None, "nested": {"list": [1, [2, {}]]}}


def test_it_is_the_same_from_everywhere(tmp_path):
    """The resolved flags are equal, and can be hashed; config.yaml holds a mapping, which comes back."""
    path = tmp_path / "flags.yaml"
    path.write_text(yaml.safe_dump({"env_kwargs": GIVEN}))
    text = json.dumps(GIVEN, indent=2)
    configs = [
        resolve(Config(env_kwargs=GIVEN)),
        resolve(Config(env_kwargs=text)),
        accepted(["--env-kwargs", text]),
        accepted([f"--env-kwargs={text}"]),
        resolve(Config(env_kwargs=dict(reversed(GIVEN.items())))),
    ]
    assert len(set(configs)) == 1
    from_file = accepted(["--config", str(path)])
    assert from_file.env_kwargs == configs[0].env_kwargs
    assert configs[0].to_dict()["env_kwargs"] == GIVEN
    written = tmp_path / "config.yaml"
    written.write_text(yaml.safe_dump(configs[0].to_dict()))
    assert yaml.safe_load(written.read_text())["env_kwargs"] == GIVEN
    assert accepted(["--config", str(written)]).to_dict() == configs[0].to_dict()
    overridden = parse_flags(Config, ["--config", str(path), "--env-kwargs", '{"a": 1}'])
    assert overridden.to_dict()["env_kwargs"] == {"a": 1}
    assert parse_flags(Config, ["--config", str(path), "--env-kwargs", "None"]).env_kwargs is None


@pytest.mark.parametrize("nothing", [None, {}, "{}"])
def test_nothing_is_nothing(nothing, tmp_path):
    assert resolve(Config(env_kwargs=nothing)) == resolve(Config())
    assert Config(env_kwargs=nothing).to_dict()["env_kwargs"] is None
    path = tmp_path / "flags.yaml"
    path.write_text(yaml.safe_dump({"env_kwargs": nothing}))
    assert accepted(["--config", str(path)]).to_dict() == Config().to_dict()


def test_python_values_that_json_has_another_form_for():
    """A number of NumPy's that is a float, a whole number by name, a tuple."""
    number = enum.IntEnum("Number", {"SEVEN": 7})
    given = {"size": (3, 4), "speed": np.float64(0.5), "count": number.SEVEN}
    assert arguments_of(given) == {"count": 7, "size": [3, 4], "speed": 0.5}
    assert json_text(given) == '{"count": 7, "size": [3, 4], "speed": 0.5}'


OBJECT = 'a JSON object such as {"enable_wind": true} is expected'


@pytest.mark.parametrize("text", ["", "{enable_wind: true}", "{'a': 1}", '{"a": 1', '{"a": True}', "[" * 10**5])
def test_a_text_that_is_no_json_is_refused(text):
    message = refusal([f"--env-kwargs={text}"]) if text else refusal(["--env-kwargs", text])
    assert message.startswith("--env-kwargs ")
    assert "no JSON (" in message
    assert message.endswith(OBJECT)
    assert len(message) < 2000


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [Infinity]}', '{"a": -Infinity}', '{"a": 1, "a": 2}'])
def test_json_that_is_not_strict_is_refused(text):
    assert refusal(["--env-kwargs", text]).startswith(f"--env-kwargs {text}: no JSON (")


@pytest.mark.parametrize("text", ["3", "true", "null", '"text"', "[1, 2]", '[["a", 1]]'])
def test_json_that_is_no_object_is_refused(text):
    assert refusal(["--env-kwargs", text]) == f"--env-kwargs {text}: {OBJECT}"


@pytest.mark.parametrize("value", [3, True, [1], ("a", 1), {1, 2}, 0.5])
def test_values_that_are_no_mapping_are_refused(value):
    with pytest.raises(ConfigError, match=r"^--env-kwargs .*: a JSON object such as .* is expected$"):
        Config(env_kwargs=value)


def endless():
    value = []
    value.append(value)
    return value


def many():
    value = []
    for _ in range(100):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        float("nan"),
        [1, [float("inf")]],
        np.zeros(2),
        np.float32("nan"),
        np.complex64(1),
        b"bytes",
        {1: 2},
        {"a": {None: 2}},
        "\ud800",
        lambda: 0,
        1j,
        endless(),
        many(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_does_not_have_are_refused(value):
    with pytest.raises(ConfigError) as caught:
        Config(env_kwargs={"fine": 1, "size": value})
    message = str(caught.value)
    assert message.startswith("--env-kwargs size: ")
    assert message.endswith("texts, finite numbers, true, false, null, and lists and mappings of these are expected")


def test_what_yaml_has_and_json_has_not_is_refused(tmp_path):
    for text in ("{day: 2020-01-01}", "{a: .nan}", "{a: !!set {x, y}}", "{1: 2}", "{a: {1: 2}}", "[1]", "5"):
        path = tmp_path / "flags.yaml"
        path.write_text(f"env_kwargs: {text}")
        assert refusal(["--config", str(path)]).startswith("--env-kwargs "), text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"env_kwargs": {"render_mode": "human"}}, "--env-kwargs render_mode: this program gives it itself; .*"),
        ({"env_kwargs": '{"disable_env_checker": true}'}, "--env-kwargs disable_env_checker: this program .*"),
        ({"env_kwargs": {"id": "CartPole-v1"}}, "--env-kwargs id: this program .*"),
        ({"env_kwargs": {1: 2}}, "--env-kwargs 1: is a int; the name of an argument is expected"),
        (
            {"env_kwargs": {"a": 1}, "env_backend": "envpool"},
            "--env-kwargs: --env-backend sync or async is needed, EnvPool's constructors are others",
        ),
        (
            {"env_kwargs": {"frameskip": 2}, "env_id": "ALE/Pong-v5", "env_preset": "atari"},
            "--env-kwargs frameskip: --env-preset atari gives it itself; other arguments are expected",
        ),
        ({"frame_stack": 0}, "--frame-stack 0: a whole number from 1 up is expected"),
        ({"frame_stack": 2000}, "--frame-stack 2000: at most 1024 is expected"),
        (
            {"frame_stack": 4, "env_backend": "envpool"},
            "--frame-stack 4: --env-backend sync or async is needed, whose environments can be stacked",
        ),
        (
            {"frame_stack": 4, "env_id": "ALE/Pong-v5", "env_preset": "atari"},
            "--frame-stack 4: --env-preset atari stacks four frames already; one of the two is expected",
        ),
    ],
)
def test_what_cannot_be_given_is_refused(flags, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Config(**flags)


def test_one_frame_is_no_stack():
    assert Config(frame_stack=1, env_backend="envpool") == Config(env_backend="envpool")
