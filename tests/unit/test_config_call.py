"""`Config(...)` from Python: values as callers have them, names of other programs, and its repr."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import pickle
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml

from fabric_ppo.config import SCRIPT_CONFIGS, Config, DecoupledConfig, TorchConfig
from fabric_ppo.config_names import notes, same_names
from fabric_ppo.process.errors import ConfigError


class Backend(enum.StrEnum):
    """An enumeration of texts, which are texts themselves."""

    SYNC = "sync"


class Stop:
    """A class that stands where its name is expected."""


def wrap(env):
    """Do nothing: a function that stands where its name is expected."""
    return env


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"total_timesteps": np.int64(256)}, {"total_timesteps": 256}),
        ({"total_timesteps": 1e6}, {"total_timesteps": 1_000_000}),
        ({"seed": np.uint8(3)}, {"seed": 3}),
        ({"num_steps": np.float64(128)}, {"num_steps": 128}),
        ({"num_steps": np.array(16)}, {"num_steps": 16}),
        ({"num_steps": torch.tensor(16)}, {"num_steps": 16}),
        ({"learning_rate": np.float32(1e-3)}, {"learning_rate": float(np.float32(1e-3))}),
        ({"learning_rate": np.float64(1e-3)}, {"learning_rate": 1e-3}),
        ({"gamma": np.int32(1)}, {"gamma": 1}),
        ({"stop_at_return": np.float16(0.5)}, {"stop_at_return": 0.5}),
        ({"anneal_lr": np.bool_(False)}, {"anneal_lr": False}),
        ({"env_id": np.str_("CartPole-v1")}, {}),
        ({"exp_name": np.str_("mine")}, {"exp_name": "mine"}),
        ({"env_backend": Backend.SYNC}, {"env_backend": "sync"}),
        ({"hidden_sizes": np.array([8, 4])}, {"hidden_sizes": (8, 4)}),
        ({"hidden_sizes": [np.int64(8), 4.0]}, {"hidden_sizes": (8, 4)}),
        ({"env_kwargs": {"a": np.float32(0.5)}}, {"env_kwargs": {"a": 0.5}}),
        ({"env_kwargs": {"b": [np.int8(1), np.bool_(True)]}}, {"env_kwargs": {"b": [1, True]}}),
        ({"track": ["tensorboard", "jsonl"]}, {"track": "tensorboard,jsonl"}),
        ({"track_tags": ("a", "b")}, {"track_tags": "a,b"}),
        ({"obs_keys": ["image", "vec"]}, {"obs_keys": "image,vec"}),
    ],
    ids=str,
)
def test_values_of_other_libraries_are_those_of_python(given, plain):
    """In the object, and in config.yaml."""
    found, expected = Config(**given), Config(**plain)
    assert json.dumps(found.to_dict()) == json.dumps(expected.to_dict())
    assert yaml.safe_dump(found.to_dict()) == yaml.safe_dump(expected.to_dict())
    for name in plain:
        assert type(getattr(found, name)) is type(getattr(expected, name))
    assert "env_kwargs" in given or found == expected
    assert dataclasses.replace(Config(), **given).to_dict() == expected.to_dict()


def test_positional_values_are_those_of_python_too():
    assert Config("CartPole-v1", np.int64(3)) == Config(num_envs=3)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"gamma": "0.9"}, "--gamma '0.9' (str): a number is expected"),
        ({"total_timesteps": "256"}, "--total-timesteps '256' (str): a whole number is expected"),
        ({"anneal_lr": "False"}, "--anneal-lr 'False' (str): true or false is expected"),
        ({"total_timesteps": 2.5}, "--total-timesteps 2.5: a whole number is expected"),
        ({"num_steps": np.float32(2.5)}, "--num-steps 2.5: a whole number is expected"),
        ({"num_steps": True}, "--num-steps True: a whole number is expected"),
        ({"gamma": [0.9]}, "--gamma [0.9] (list): a number is expected"),
        ({"exp_name": {"a": 1}}, "--exp-name {'a': 1} (dict): text is expected"),
        (
            {"hidden_sizes": (64, "64")},
            "--hidden-sizes (64, '64') (tuple): a list of whole numbers, such as 64 64, is expected",
        ),
        ({"recurrent": "rnn"}, "--recurrent rnn: one of none, lstm, gru is expected"),
    ],
    ids=str,
)
def test_a_refused_value_shows_its_type_where_it_would_not_show(given, text):
    with pytest.raises(ConfigError) as caught:
        Config(**given)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["callback", "track", "env_wrapper", "encoder"])
@pytest.mark.parametrize("part", [Stop, Stop(), wrap, [Stop], [Stop()]])
def test_a_part_of_ones_own_is_told_its_name(name, part):
    with pytest.raises(ConfigError) as caught:
        Config(**{name: part})
    own = f"{__name__}:{'wrap' if part is wrap else 'Stop'}"
    assert f"'module:Name' is expected, such as '{own}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lambda_has_no_name():
    with pytest.raises(ConfigError, match=r"'module:Name' is expected$"):
        Config(env_wrapper=lambda env: env)


@pytest.mark.parametrize("env", [gymnasium.make("CartPole-v1"), gymnasium.Env, object(), wrap])
def test_an_environment_is_told_its_id(env):
    with pytest.raises(ConfigError, match="'module:Name' is expected, such as '__main__:MyEnv-v0', or an id such as"):
        Config(env_id=env)


@pytest.mark.parametrize("kind", list(SCRIPT_CONFIGS.values()))
@pytest.mark.parametrize("name", [*same_names(), *notes()])
def test_names_of_other_programs_are_answered_as_arguments(kind, name):
    with pytest.raises(ConfigError) as caught:
        kind(**{name: 1})
    text = str(caught.value)
    assert text.startswith(f"{kind.__name__}({name}=...): ")
    assert len(text) > len(f"{kind.__name__}({name}=...): ")
    ours = {field.name for field in dataclasses.fields(kind)}
    assert not [each for each in ours if f"--{each.replace('_', '-')}" in text.replace(" ", "  ").split("  ")]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("n_steps", "here it is num_steps"),
        ("lr", "here it is learning_rate"),
        ("no_anneal_lr", "here it is anneal_lr=False"),
        ("no_norm_obs", "here it is normalize_observations=False"),
        ("numsteps", "did you mean num_steps?"),
        ("zzzzzzzz", "python -m fabric_ppo train --help-all lists the flags"),
        ("batch_size", "per_rank_batch_size has the rows of a minibatch on each rank"),
        ("lr_schedule", "anneal_lr lowers the learning rate linearly to zero and is on, anneal_lr=False keeps it"),
        ("cuda", "it is one of TorchConfig, as in train(TorchConfig(cuda=...))"),
        ("overlap", "it is one of train_fabric_decoupled.py, as in python -m fabric_ppo train decoupled"),
        ("device", "train(TorchConfig(cuda=True)) trains on a GPU"),
        ("n_gpus", "train(TorchConfig(cuda=True)) trains on a GPU"),
        ("nonsense", "python -m fabric_ppo train --help-all lists the flags"),
        ("callbacks", "it is an argument of train, as in train(Config(...), callbacks=...)"),
        ("verbose", "it is an argument of train, as in train(Config(...), verbose=...)"),
    ],
)
def test_a_name_that_is_no_flag_is_answered(name, hint):
    with pytest.raises(ConfigError) as caught:
        Config(**{name: 1})
    assert str(caught.value).startswith(f"Config({name}=...): {hint}")
    with pytest.raises(ConfigError):
        dataclasses.replace(Config(), **{name: 1})


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        TorchConfig(cuda=True),
        DecoupledConfig(overlap=True, gamma=1),
        Config(env_kwargs={"a": np.float32(0.5), "b": (1, 2)}, hidden_sizes=np.array([8])),
        Config(run_dir=Path("a folder"), exp_name="it"),
        Config(log_dir="it's", target_kl=0.1, anneal_lr=False),
    ],
    ids=repr,
)
def test_the_repr_is_the_call_that_makes_it(config):
    made = eval(repr(config))
    assert made.to_dict() == config.to_dict()
    assert made.run_dir == config.run_dir
    assert repr(made) == repr(config)
    differing = [each.name for each in dataclasses.fields(config) if getattr(config, each.name) != each.default]
    assert [part for part in differing if f"{part}=" not in repr(config)] == []
    assert repr(type(config)()) == f"{type(config).__name__}()"


@pytest.mark.parametrize("kind", list(SCRIPT_CONFIGS.values()))
def test_a_config_is_still_a_dataclass(kind):
    fields = [field.name for field in dataclasses.fields(kind)]
    assert list(inspect.signature(kind).parameters) == fields
    config = kind(seed=3)
    assert pickle.loads(pickle.dumps(config)) == config == kind(seed=3)
    assert hash(config) == hash(kind(seed=3))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("jsonl mine:T", "jsonl,mine:T"),
        (" jsonl ,  mine:T\n", "jsonl,mine:T"),
        ("jsonl,mine:T", "jsonl,mine:T"),
        (["jsonl mine:T", "other:T"], "jsonl,mine:T,other:T"),
        (("jsonl", "mine:T"), "jsonl,mine:T"),
    ],
)
def test_names_have_spaces_or_commas_between_them(given, kept):
    """As the words of a command line have."""
    assert Config(track=given).track == kept
    own = {"callback": "a:B  c:D", "env_wrapper": "a:b, c:d"}
    config = Config(**own)
    assert (config.callback, config.env_wrapper) == ("a:B,c:D", "a:b,c:d")
    assert Config(track_tags="two words,b", info_keys="two words").track_tags == "two words,b"
