"""`--run-dir DIR --resume` alone: the flags are those of the run; what is given besides comes before them."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from fabric_ppo import api
from fabric_ppo.config import SCRIPT_CONFIGS, Config, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.commands import flag_words
from fabric_ppo.run.folder import make_folder, started_with
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures.flags import refusal

pytestmark = pytest.mark.usefixtures("no_launcher")

OTHER = {"gamma": 0.5, "hidden_sizes": (8, 16), "quiet": True, "anneal_lr": False, "log_std_init": -2.0}
OTHER |= {"env_id": "LunarLander-v3", "env_kwargs": '{"gravity": -5.0}', "target_kl": 0.1, "total_timesteps": 2048}
"""Flags of every type, none at its default."""


@pytest.fixture(params=list(SCRIPT_CONFIGS))
def kind(request):
    return SCRIPT_CONFIGS[request.param]


def begun(folder, kind=TorchConfig, **flags):
    """The flags of a run that has begun in a folder."""
    config = kind(**OTHER | flags)
    make_folder(folder, config)
    return config


@pytest.mark.parametrize("words", [["--run-dir", "{}", "--resume"], ["--resume", "--run_dir={}"]])
def test_no_other_flag_is_needed(kind, words, tmp_path):
    run = begun(tmp_path, kind)
    config = parse_flags(kind, [word.format(tmp_path) for word in words])
    assert config == replace(run, run_dir=str(tmp_path), resume=True, env_kwargs=config.env_kwargs)
    assert json.loads(str(config.env_kwargs)) == {"gravity": -5.0}


def test_a_flag_that_is_given_comes_before_that_of_the_file_and_this_before_the_runs(tmp_path):
    begun(tmp_path / "run")
    file = tmp_path / "flags.yaml"
    file.write_text("gamma: 0.6\nseed: 9\n")
    args = ["--run-dir", str(tmp_path / "run"), "--resume", "--config", str(file), "--seed", "8", "--no-quiet"]
    config = parse_flags(TorchConfig, args)
    assert (config.seed, config.gamma, config.target_kl, config.quiet) == (8, 0.6, 0.1, False)


def test_a_file_may_ask_to_resume(tmp_path):
    begun(tmp_path / "run")
    file = tmp_path / "flags.yaml"
    file.write_text(f"run_dir: {tmp_path / 'run'}\nresume: true\n")
    assert parse_flags(TorchConfig, ["--config", str(file)]).gamma == 0.5
    assert parse_flags(TorchConfig, []).gamma == 0.99


@pytest.mark.parametrize("args", [[], ["--resume", "--no-resume"]])
def test_without_resume_the_folder_is_not_read(args, tmp_path):
    begun(tmp_path)
    assert parse_flags(TorchConfig, ["--run-dir", str(tmp_path), *args]).gamma == Config().gamma


@pytest.mark.parametrize("folder", ["", "empty", "missing"])
def test_without_a_run_the_given_flags_begin_one(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    config = parse_flags(TorchConfig, ["--run-dir", str(tmp_path / folder), "--resume", "--gamma", "0.5"])
    assert config == TorchConfig(run_dir=str(tmp_path / folder), resume=True, gamma=0.5)


def test_the_run_of_another_script_is_refused(kind, tmp_path):
    begun(tmp_path, kind)
    for other in SCRIPT_CONFIGS.values():
        if other is not kind:
            message = refusal(["--run-dir", str(tmp_path), "--resume"], other)
            assert f"--resume --run-dir {tmp_path}: holds a run of train_{kind.script}.py, this is train_" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"gamma: [", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"5", "a YAML mapping"),
        (b"", "a YAML mapping"),
        (b"gama: 1", "unknown key gama"),
    ],
)
def test_a_file_that_is_no_runs_is_named(content, reason, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    message = refusal(["--run-dir", str(tmp_path), "--resume"])
    assert message.startswith(f"--resume: {tmp_path / 'config.yaml'}: {reason}")


def test_a_value_of_the_runs_file_is_checked_as_a_flag(tmp_path):
    (tmp_path / "config.yaml").write_text("gamma: 7\n")
    assert refusal(["--run-dir", str(tmp_path), "--resume"]).startswith("--gamma 7")


def test_a_resumed_run_that_needs_no_flags_is_checked_once_all_are_known(tmp_path):
    """`--desired-kl` needs `--no-anneal-lr`, which the run has."""
    begun(tmp_path)
    assert parse_flags(TorchConfig, ["--run-dir", str(tmp_path), "--resume", "--desired-kl=0.01"]).desired_kl == 0.01


def test_from_python_what_is_at_its_default_is_the_runs(tmp_path):
    run = begun(tmp_path)
    flags = api._flags(Config(run_dir=tmp_path, resume=True, gamma=0.9))
    config = resolve(TorchConfig(**flags))
    expected = {"run_dir": str(tmp_path), "resume": True, "gamma": 0.9, "quiet": False}
    assert config == resolve(replace(run, **expected))


def test_from_python_the_run_of_another_script_is_refused(tmp_path):
    begun(tmp_path, Config)
    with pytest.raises(ConfigError, match=r"holds a run of train_fabric\.py, this is train_torch\.py"):
        api.train(Config(run_dir=str(tmp_path), resume=True))


FABRIC = {"LT_CLI_USED": "1", "LT_DEVICES": "3", "LT_ACCELERATOR": "cpu", "LT_PRECISION": "bf16-mixed"}
RANK = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3", "MASTER_PORT": "29400"}


@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        ("torch", {}, ["--nproc_per_node=3"]),
        ("fabric", FABRIC, ["--devices=3", "--accelerator=cpu", "--precision=bf16-mixed"]),
        ("decoupled", FABRIC, ["--devices=3", "--accelerator=cpu", "--precision=bf16-mixed"]),
    ],
)
def test_nor_is_any_of_the_launchers(name, variables, expected, tmp_path, monkeypatch):
    """Where `fabric-ppo train` goes on with a run; what is given comes before what the run had."""
    kind, launched = SCRIPT_CONFIGS[name], []
    with monkeypatch.context() as patch:
        for variable, value in (RANK | variables).items():
            patch.setenv(variable, value)
        patch.setattr("fabric_ppo.process.command._FABRIC", {key[3:]: value for key, value in variables.items()})
        begun(tmp_path, kind)
    assert started_with(str(tmp_path))[0] == f"train_{kind.script}.py"
    monkeypatch.setattr(os, "execve", lambda _, words, env: launched.append(words))
    assert cli.main(["train", name, "--run-dir", str(tmp_path), "--resume"]) is None
    assert set(expected) <= set(launched[0])
    cli.main(["train", name, "--run-dir", str(tmp_path), "--resume", "--devices", "2"])
    assert expected[0].replace("3", "2") in launched[1]


@pytest.mark.parametrize("name", list(OTHER))
def test_the_words_of_a_flag_are_read_as_its_value(name, tmp_path):
    """Of commands that are printed."""
    config = TorchConfig(**OTHER)
    words = flag_words(name, config.to_dict()[name])
    assert parse_flags(TorchConfig, words).to_dict()[name] == config.to_dict()[name]


WATCHED = {"callback": "tests.fixtures.counting:Missing", "info_keys": "x_position", "track_tags": "a,b"}
"""Flags that a run may be resumed without."""


@pytest.mark.parametrize("name", WATCHED)
def test_none_drops_what_a_run_was_watched_with(name, tmp_path):
    """From the shell, from a file and from Python; what is not given stays."""
    begun(tmp_path, **WATCHED)
    others = {other: value for other, value in WATCHED.items() if other not in (name, "callback")}
    without = {"callback": "none", name: "none"}
    (tmp_path / "given.yaml").write_text("".join(f"{key}: none\n" for key in without))
    words = ["--run-dir", str(tmp_path), "--resume"]
    for config in (
        parse_flags(TorchConfig, [*words, *(word for key in without for word in flag_words(key, "none"))]),
        parse_flags(TorchConfig, [*words, "--config", str(tmp_path / "given.yaml")]),
        TorchConfig(**api._flags(Config(run_dir=tmp_path, resume=True, **without))),
    ):
        resolved = resolve(config)
        assert {key: getattr(resolved, key) for key in WATCHED} == dict.fromkeys(WATCHED) | others
