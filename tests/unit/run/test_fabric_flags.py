"""Flags of `fabric run`: what cannot work is one line before anything starts."""

from __future__ import annotations

import sys

import pytest
import torch

from fabric_ppo.config import Config, DecoupledConfig, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.group import one_process_unless_launched
from fabric_ppo.run.fabric_flags import require_devices, require_fabric_flags, require_fabric_variables
from fabric_ppo.tools import cli
from fabric_ppo.tools.commands import train
from fabric_ppo.tools.flags import parse_args

pytestmark = pytest.mark.usefixtures("no_launcher")

WRONG = [
    ("strategy", "fsdp"),
    ("strategy", "dp"),
    ("strategy", "deepspeed"),
    ("strategy", "ddp_spawn"),
    ("accelerator", "tpu"),
    ("accelerator", "nonsense"),
    ("precision", "16-mixed"),
    ("precision", "16"),
    ("precision", "bf16-true"),
    ("precision", "transformer-engine"),
]


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_what_no_agent_trains_with_is_one_line(name, value, monkeypatch, capsys):
    """As the launcher passes it on to the script, and on the command line of `fabric-ppo train`."""
    monkeypatch.setenv(f"LT_{name.upper()}", value)
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, [])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: --{name} {value}: ")
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    monkeypatch.delenv(f"LT_{name.upper()}")
    assert cli.main(["train", "fabric", f"--{name}", value]) == 2
    assert capsys.readouterr().err == printed.err


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("accelerator", ["mps", "cuda", "gpu"])
def test_an_accelerator_that_is_not_there(accelerator):
    with pytest.raises(ConfigError, match=rf"^--accelerator {accelerator}: .* (here|found)"):
        require_fabric_flags(accelerator=accelerator)


def test_what_works_is_taken():
    for strategy in (None, "auto", "ddp"):
        for precision in (None, "32", "32-true", "64", "64-true", "bf16", "bf16-mixed"):
            require_fabric_flags("cpu", strategy, precision, 8)


def test_one_process_on_apples_gpu(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    require_fabric_flags("mps")
    with pytest.raises(ConfigError, match="one process"):
        require_fabric_flags("mps", num_devices=2)


def test_fewer_gpus_than_processes(monkeypatch):
    """Without a GPU, `fabric run` takes the CPU by itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_devices(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"^--devices 3: 1 CUDA device found; --accelerator cpu takes none$"):
        require_devices(3)


def test_player_and_trainers_choose_devices_themselves(monkeypatch):
    monkeypatch.setenv("LT_STRATEGY", "fsdp")
    require_fabric_variables(DecoupledConfig())
    require_fabric_variables(TorchConfig())
    monkeypatch.setenv("LT_PRECISION", "16")
    with pytest.raises(ConfigError, match="--precision 16"):
        require_fabric_variables(DecoupledConfig())


def launched_with(words, monkeypatch):
    """Arguments of the launcher that a command is replaced by."""
    seen = []
    monkeypatch.setattr("os.execve", lambda _, args, env: seen.extend(args))
    cli.main(["train", *words])
    return seen


def test_the_decoupled_launcher_starts_cpu_processes(monkeypatch):
    assert "--accelerator=cpu" in launched_with(["decoupled", "--devices", "3"], monkeypatch)
    monkeypatch.setattr(train, "resolve", lambda config, *_: config)
    monkeypatch.setattr(train, "require_fabric_flags", lambda *_: None)
    assert "--accelerator=cpu" in launched_with(["decoupled", "--devices", "3", "--cuda"], monkeypatch)
    own = launched_with(["decoupled", "--devices", "3", "--accelerator", "cuda"], monkeypatch)
    assert "--accelerator=cuda" in own
    assert "--accelerator=cpu" not in own


def test_a_single_process_is_no_task_of_lightnings(monkeypatch):
    """Lightning would read a rank from variables that only `srun` sets."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("LT_DEVICES", "1")
    assert SLURMEnvironment.detect()
    one_process_unless_launched()
    assert not SLURMEnvironment.detect()
