"""Flags of `fabric run`, which reach a script as environment variables: checks of their values."""

from __future__ import annotations

import os
import sys

from fabric_ppo.config import Config, DecoupledConfig, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.resolve import require_cuda

_PRECISIONS = (None, "32", "32-true", "64", "64-true", "bf16", "bf16-mixed")
# 16-mixed skips gradient steps that overflow; weights of 16 bits are too coarse for Adam
_STRATEGIES = (None, "auto", "ddp", "ddp_find_unused_parameters_true")
# others split the agent's weights or its batches over devices: ranks are to be whole copies
_ACCELERATORS = (None, "auto", "cpu", "gpu", "cuda", "mps")


def require_fabric_variables(config: Config) -> None:
    """Raise a ConfigError for variables that Lightning would read from this process's environment.

    `fabric run` passes its flags on as `LT_...`; without it a script is one process.
    """
    given = {name: os.environ.get(f"LT_{name.upper()}") for name in ("accelerator", "strategy", "precision")}
    if isinstance(config, TorchConfig):
        return
    if isinstance(config, DecoupledConfig):  # its player and trainers choose device and strategy
        given = {"precision": given["precision"]}
    devices = os.environ.get("LT_DEVICES", "1")
    require_fabric_flags(**given, num_devices=int(devices) if devices.isdecimal() else 1)


def require_fabric_flags(
    accelerator: str | None = None, strategy: str | None = None, precision: str | None = None, num_devices: int = 1
) -> None:
    """Raise a ConfigError for flags of `fabric run` that agents cannot train with on this host.

    Args:
        accelerator: `--accelerator`; this and the others are None if not given.
        strategy: `--strategy`.
        precision: `--precision`.
        num_devices: devices on this host.
    """
    if precision not in _PRECISIONS:
        raise ConfigError(f"--precision {precision}: 32-true, 64-true or bf16-mixed is expected")
    if strategy not in _STRATEGIES:
        raise ConfigError(f"--strategy {strategy}: ddp is expected; every rank has a whole copy of the agent")
    if accelerator not in _ACCELERATORS:
        raise ConfigError(f"--accelerator {accelerator}: cpu, cuda, gpu, mps or auto is expected")
    if accelerator == "mps" or (accelerator == "gpu" and sys.platform == "darwin"):
        _require_mps(accelerator, strategy, num_devices)
    elif accelerator in ("gpu", "cuda"):
        require_cuda(num_devices, f"--accelerator {accelerator}")


def require_devices(num_devices: int) -> None:
    """Raise a ConfigError if `fabric run --devices` without `--accelerator` would lack GPUs.

    If there is a GPU, it takes only GPUs.
    """
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else num_devices
    if found < num_devices:
        raise ConfigError(
            f"--devices {num_devices}: {found} CUDA device{'s' * (found != 1)} found; --accelerator cpu takes none"
        )


def _require_mps(accelerator: str, strategy: str | None, num_devices: int) -> None:
    """Raise a ConfigError if Apple's GPU is missing, or more than one process would train on it."""
    is_there = sys.platform == "darwin"
    if is_there:
        import torch

        is_there = torch.backends.mps.is_available()
    if not is_there:
        raise ConfigError(f"--accelerator {accelerator}: no such device here; cpu is expected, or cuda with a GPU")
    if num_devices > 1 or strategy not in (None, "auto"):
        raise ConfigError(f"--accelerator {accelerator}: one process without --strategy is expected")
