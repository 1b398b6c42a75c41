"""A Config validates itself when it is built, and counts updates."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from fabric_ppo.config import FLAG_GROUPS, SCRIPT_CONFIGS, Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.resolve import resolve
from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE
from tests.fixtures.recurrent import recurrent_config
from tests.fixtures.updates import FOLLOWS

TRACKERS_EXPECTED = "none, tensorboard, jsonl, wandb, mlflow, trackio or module:Class is expected"


def test_every_field_is_in_one_group_in_the_order_in_which_it_is_needed():
    """A field of the groups that two had would be in one place only; each group has a title."""
    names = [field.name for group in FLAG_GROUPS for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    assert names == [field.name for field in dataclasses.fields(Config)]
    firsts = [dataclasses.fields(group)[0].name for group in FLAG_GROUPS]
    assert firsts == ["env_id", "config", "num_steps", "hidden_sizes", "env_backend", "run_dir"]
    assert all(group.__doc__ and "\n" not in group.__doc__ for group in FLAG_GROUPS)


@pytest.mark.parametrize(
    "values",
    [
        {"num_envs": 0},
        {"num_envs": 2.5},
        {"num_envs": float("inf")},
        {"num_envs": True},
        {"gamma": "0.9"},
        {"gamma": None},
        {"anneal_lr": 1},
        {"hidden_sizes": ()},
        {"hidden_sizes": (64, 1.5)},
        {"hidden_sizes": 64},
        {"env_backend": "thread"},
        {"exp_name": 3},
        {"run_dir": 3},
    ],
    ids=str,
)
def test_a_config_validates_itself_without_a_command_line(values):
    (name,) = values
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        Config(**values)
    with pytest.raises(ConfigError):
        dataclasses.replace(Config(), **values)


@pytest.mark.parametrize("kind", list(SCRIPT_CONFIGS.values()))
def test_numbers_of_python_callers_become_the_fields_types(kind):
    """In what is written, and in what runs: equal runs have equal values, and an equal config.yaml."""
    given = kind(gamma=1, stop_at_return=400, hidden_sizes=[8, 4], target_kl=None, seed=3, anneal_lr=False)
    values = given.to_dict()
    assert (values["gamma"], values["stop_at_return"], values["hidden_sizes"]) == (1.0, 400.0, [8, 4])
    assert type(values["gamma"]) is type(values["stop_at_return"]) is float
    assert type(values["hidden_sizes"]) is list
    assert (values["target_kl"], values["seed"], values["anneal_lr"]) == (None, 3, False)
    assert type(values["seed"]) is int
    canonical = kind(gamma=1.0, stop_at_return=400.0, hidden_sizes=(8, 4), target_kl=None, seed=3, anneal_lr=False)
    assert values == canonical.to_dict()
    assert json.dumps(values) == json.dumps(canonical.to_dict())
    config = resolve(given, 2, 2)
    assert (config.gamma, config.stop_at_return, config.hidden_sizes) == (1.0, 400.0, (8, 4))
    assert type(config.gamma) is type(config.stop_at_return) is float
    assert config == resolve(canonical, 2, 2)
    assert type(given.gamma) is int, "resolving returns another one"


BUILDS = """
import sys
before, path = set(sys.modules), list(sys.path)
from fabric_ppo.config import {kind}
loaded = set(sys.modules)
config = {kind}(
    hidden_sizes=[8, 4], env_wrapper="a_module_of_mine:wrapper", encoder="a_module_of_mine:Encoder",
    track="jsonl,a_module_of_mine:Tracker", callback="a_module_of_mine:Callback", env_id="Nothing-v0",
    compile=True, {more}
)
config.to_dict()
own = {{name for name in loaded if name.startswith("fabric_ppo")}}
others = {{name for name in own if not name.startswith("fabric_ppo.config")}}
assert others == {{"fabric_ppo", "fabric_ppo.process", "fabric_ppo.process.errors"}}, own
for name in ("torch", "numpy", "gymnasium", "lightning", "yaml", "tyro", "a_module_of_mine"):
    assert name not in sys.modules, name
assert set(sys.modules) == loaded, set(sys.modules) - loaded
assert sys.path == path
"""


@pytest.mark.parametrize("kind", list(SCRIPT_CONFIGS.values()))
def test_building_a_config_imports_and_prints_nothing(tmp_path, kind):
    """In a fresh interpreter, also where flags name modules, an environment that there is not, or CUDA."""
    (tmp_path / "a_module_of_mine.py").write_text("raise AssertionError('imported')")
    more = "" if kind is Config else "cuda=True"
    done = subprocess.run(
        [sys.executable, "-c", BUILDS.format(kind=kind.__name__, more=more)],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"critic_keys": "state,"}, "--critic-keys state,: a list such as state,goal.inner is expected"),
        (
            {"critic_keys": "state", "shared_trunk": True},
            "--critic-keys: --no-shared-trunk is needed too, a value network with layers of its own",
        ),
        ({"track": "neptune"}, f"--track neptune: {TRACKERS_EXPECTED}"),
        ({"track": "jsonl,json_lines"}, "--track json_lines: here it is jsonl"),
        ({"track": ""}, f"--track: {TRACKERS_EXPECTED}"),
        ({"track_project": "a/b"}, "--track-project a/b: letters, digits and - _ is expected"),
        ({"track_tags": "a,,b"}, "--track-tags a,,b: names, or None is expected"),
        ({"track_group": " "}, "--track-group: a name, or None is expected"),
        ({"track_timeout": 0.0}, "--track-timeout 0.0: a number above 0 is expected"),
        ({"track_timeout": 1e9}, "--track-timeout 1000000000.0: at most 1e+06 is expected"),
        ({"track": "none jsonl"}, f"--track none: {TRACKERS_EXPECTED}"),
        ({"callback": "none,a:B"}, "--callback none: none or module:Class is expected"),
        ({"callback": ""}, "--callback: none or module:Class is expected"),
        ({"track": "jsonl,"}, f"--track jsonl,: {TRACKERS_EXPECTED}"),
        ({"track": "mine:"}, f"--track mine:: {TRACKERS_EXPECTED}"),
        ({"callback": "mine"}, "--callback mine: none or module:Class is expected"),
        ({"callback": "a:B,json_lines"}, "--callback json_lines: none or module:Class is expected"),
        ({"env_wrapper": "a:b,:c"}, "--env-wrapper :c: module:name is expected"),
    ],
)
def test_names_of_parts_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "num_ranks", "expected"),
    [
        ({}, 1, 256),  # 65536 / (128 x 2)
        ({}, 4, 64),
        ({"num_envs": 3, "num_steps": 10, "total_timesteps": 100}, 1, 3),
        ({"num_envs": 3, "num_steps": 10, "total_timesteps": 119}, 2, 1),
        ({"num_envs": 3, "num_steps": 10, "total_timesteps": 60}, 2, 1),
        ({"timestep_unit": "iteration"}, 1, 512),  # 65536 / 128
        ({"timestep_unit": "iteration"}, 4, 512),
        ({"num_envs": 3, "num_steps": 10, "total_timesteps": 59, "timestep_unit": "iteration"}, 7, 5),
    ],
)
def test_number_of_updates(values, num_ranks, expected):
    assert Config(**values).num_updates(num_ranks) == expected


@pytest.mark.parametrize(("unit", "needed"), [("transition", 2 * 3 * 10), ("iteration", 10)])
def test_no_update_at_all_is_an_error(unit, needed):
    def updates(total):
        return Config(num_envs=3, num_steps=10, total_timesteps=total, timestep_unit=unit).num_updates(2)

    assert updates(needed) == 1
    with pytest.raises(ConfigError, match=rf"^--total-timesteps {needed - 1}: at least {needed} \(") as caught:
        updates(needed - 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["thread", "None", "", True, 1, ["fork"]])
def test_a_choice_that_may_be_none_takes_nothing_else(value):
    with pytest.raises(ConfigError, match=r"^--env-start-method.*: one of fork, forkserver, spawn, or None is expect"):
        Config(env_start_method=value, env_backend="async")


@pytest.mark.parametrize("value", ["fork", "forkserver", "spawn", None])
def test_a_choice_that_may_be_none_takes_these(value):
    assert Config(env_start_method=value, env_backend="async").to_dict()["env_start_method"] == value


@pytest.mark.parametrize("backend", ["sync", "envpool"])
def test_a_start_method_is_that_of_workers(backend):
    with pytest.raises(ConfigError, match=r"^--env-start-method spawn: --env-backend async is needed too$"):
        Config(env_start_method="spawn", env_backend=backend)


def test_envpool_takes_no_wrapper():
    with pytest.raises(ConfigError, match=r"^--env-wrapper: --env-backend sync or async is needed"):
        Config(env_wrapper="wrappers_of_mine:Doubled", env_backend="envpool")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"log_std_min": -21.0}, "--log-std-min -21.0: a number from -20 to 2, or None is expected"),
        ({"log_std_max": math.nan}, "--log-std-max nan: a number from -20 to 2, or None is expected"),
        ({"log_std_min": 0.5, "log_std_max": -0.5}, "--log-std-max -0.5: at least --log-std-min is expected"),
        ({"log_std_max": -0.5}, "--log-std-init 0.0: a number from -20 to -0.5 is expected"),
    ],
)
def test_impossible_bounds_of_the_deviation_are_refused(flags, message):
    with pytest.raises(ConfigError) as caught:
        Config(**flags)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"desired_kl": 0.01}, r"^--desired-kl 0\.01: --no-anneal-lr is needed too, .*$"),
        ({"desired_kl": 0.0, "anneal_lr": False}, r"^--desired-kl 0\.0: a number above 0, or None is expected$"),
        (
            FOLLOWS | {"learning_rate": 0.1},
            r"^--learning-rate 0\.1: with --desired-kl a number from 1e-05 to 0\.01 .*$",
        ),
    ],
)
def test_a_divergence_that_cannot_be_followed_is_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        Config(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sequence_length": 0}, "--sequence-length 0: a whole number from 1 up is expected"),
        ({"sequence_length": 4}, "--sequence-length 4: a divisor of --num-steps 6 is expected"),
        ({"per_rank_batch_size": 8}, "--per-rank-batch-size 8: a multiple of --sequence-length 3 is expected"),
        ({"recurrent_size": 0}, "--recurrent-size 0: a whole number from 1 up is expected"),
        ({"recurrent": "rnn"}, "--recurrent rnn: one of none, lstm, gru is expected"),
    ],
)
def test_impossible_sequences_are_refused(flags, message):
    with pytest.raises(ConfigError) as caught:
        recurrent_config(**{"per_rank_batch_size": 6} | flags)
    assert str(caught.value) == message
