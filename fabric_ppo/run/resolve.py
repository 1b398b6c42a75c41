"""Resolution of a Config: checks that need an import, the environment's id or this machine.

Building a Config checks values only. This step comes once after it, before anything starts or is
written. It loads torch for `--cuda` only, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fabric_ppo.agents.hub import is_hub_address
from fabric_ppo.config import Config
from fabric_ppo.config_arguments import json_text
from fabric_ppo.config_values import DROPPED_BY_NONE, NO_TRACKER, TRACKERS
from fabric_ppo.envs.ids import as_module, find_batch, named_function, resolve_env_id, resolve_envpool_id, where_missing
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.files import require_text_path
from fabric_ppo.run.trackers.make import require_packages

C = TypeVar("C", bound=Config)


def resolve(config: C, world_size: int = 1, ranks_on_host: int = 1) -> C:
    """Check that a Config can run on this machine, and return it with its final values.

    These have the id of the environment that runs, floats as floats, widths as a tuple and the
    arguments of its constructor as JSON, so that equal runs have equal values, and absolute paths,
    since the user's code may change the working directory.

    Args:
        config: the flags.
        world_size: number of processes of the run.
        ranks_on_host: number of processes on this host.

    Raises:
        ConfigError: the flags do not fit the launch, a name cannot be imported, there is no such
            environment, or a compiler or CUDA devices are missing.
    """
    config.check_launch(world_size, ranks_on_host)
    # before anything of the user's is imported
    paths = {name: _absolute(getattr(config, name)) for name in ("run_dir", "log_dir", "init_from")}
    for name, path in paths.items():
        require_text_path(flag(name), path)
    if config.compile:
        require_compiler()
    _require_modules(config)
    _require_importable(config)
    of_backend = resolve_envpool_id if config.env_backend == "envpool" else resolve_env_id
    env_id = of_backend(config.env_id, config.env_preset or "")
    if num_devices := config.num_cuda_devices(world_size, ranks_on_host):
        require_cuda(num_devices)
    values = config.to_dict() | {"env_id": env_id, "hidden_sizes": tuple(config.hidden_sizes)}
    if config.env_backend == "sync" and not config.env_preset and find_batch(env_id) is not None:
        values["env_backend"] = "vector"  # there is no single one that this process could step
    values |= {name: None for name in DROPPED_BY_NONE if values[name] == NO_TRACKER}
    values["env_kwargs"] = json_text(config.env_kwargs) or None
    return replace(config, **values | paths)


def _absolute(path: str | os.PathLike[str] | None) -> str | None:
    """Return an absolute path; the address of a policy on the Hub is none, and stays."""
    if path is None or is_hub_address(path):
        return None if path is None else os.fspath(path)
    return os.path.abspath(path)


def _require_modules(config: Config) -> None:
    """Raise a ConfigError for a module of the user's own that is not found, or is named as a file.

    It names where the module lies, if that is above the run's folder or the working directory.
    """
    near = Path(config.run_dir or os.getcwd())
    for name in ("env_id", "encoder", "env_wrapper", "track", "callback"):
        for each in (getattr(config, name) or "").split(","):
            module, colon, attribute = each.rpartition(":") if name == "env_id" else each.partition(":")
            if not module or not colon:
                continue
            if (expected := as_module(module)) != module:
                raise ConfigError(f"{flag(name)} {each}: {expected}:{attribute} is expected, a module and not its file")
            if where := where_missing([module], near):
                raise ConfigError(f"{flag(name)} {each}: cannot be imported (No module named {module!r}), {where}")


def _require_importable(config: Config) -> None:
    """Raise a ConfigError for a part of the user's own, `module:name`, that cannot be imported."""
    if ":" in config.encoder:
        named_function(config.encoder, "encoder")
    for flag_name in ("env_wrapper", "track", "callback"):
        for name in (getattr(config, flag_name) or "").split(","):
            if name and name not in (*TRACKERS, NO_TRACKER):
                named_function(name, flag_name)
    require_packages(config.track)


def require_compiler() -> None:
    """Raise a ConfigError if torch.compile would find no C++ compiler or no Python headers."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"--compile: a C++ compiler is needed, {compiler} is not found; CXX names another one")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise ConfigError("--compile: Python's headers are needed (package python3-dev or similar)")


def require_cuda(num_devices: int, of: str = "--cuda") -> None:
    """Raise a ConfigError if this host has fewer CUDA devices than the flag `of` asks for."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < num_devices:
        needed = f"{num_devices} CUDA device{' is' if num_devices == 1 else 's are'} needed"
        raise ConfigError(f"{of}: {needed} here, {found} found")
