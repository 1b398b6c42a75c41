"""The command of a report: its flags, parsed again, are those of the run."""

from __future__ import annotations

import shlex

import pytest

from fabric_ppo.config import Config, DecoupledConfig, TorchConfig
from fabric_ppo.tools.flags import parse_flags
from fabric_ppo.tools.report.repeat import command_of
from fabric_ppo.tools.report.runs import read_runs
from tests.fixtures.run_folders import columns, write_run

FLAGS = [
    {},
    {"learning_rate": 0.002, "anneal_lr": False, "num_envs": 3},
    {"hidden_sizes": (32, 16, 8), "log_std_init": -0.5, "target_kl": 0.02},
    {"env_kwargs": '{"gravity": -9.5, "name": "a b\'c"}', "obs_keys": None, "env_id": "Acrobot-v1"},
]


def command(folder):
    return shlex.split(command_of(read_runs([folder])[0]))


@pytest.mark.parametrize("flags", FLAGS)
def test_the_command_has_the_flags_of_the_run(tmp_path, flags):
    words = command(write_run(tmp_path / "run", columns(2), **flags))
    assert words[:5] == ["python", "-m", "fabric_ppo", "train", "torch"]
    assert parse_flags(TorchConfig, words[5:], "test") == TorchConfig(**flags)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("# train_torch.py with --devices=2", ["torch", "--devices", "2"]),
        ("# train_fabric.py with --devices=2 --accelerator=cpu", ["fabric", "--devices", "2", "--accelerator", "cpu"]),
        ("# train_fabric_decoupled.py with --devices=3", ["decoupled", "--devices", "3"]),
    ],
)
def test_the_command_has_the_launcher(tmp_path, header, words):
    own = command(write_run(tmp_path / "run", columns(2), header=header))
    assert own == ["python", "-m", "fabric_ppo", "train", *words]


@pytest.mark.parametrize("kind", [Config, DecoupledConfig])
def test_flags_of_the_other_scripts_are_left_out(tmp_path, kind):
    header = f"# train_{kind.script}.py"
    assert "--cuda" not in command(write_run(tmp_path / "run", columns(2), header=header, num_envs=3))


def test_a_folder_that_does_not_tell_has_no_command(tmp_path):
    run = write_run(tmp_path / "run", columns(2))
    (run / "config.yaml").write_text("- 1\n")
    assert command(run) == []
