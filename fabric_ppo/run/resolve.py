"""Resolution of a Config: checks that need an import, the environment's id or this machine.

Building a Config checks values only. This step comes once after it, before anything starts or is
written. It loads torch only for `--cuda`, so that errors about flags appear quickly.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fabric_ppo.agents.hub import is_hub_address
from fabric_ppo.config import Config
from fabric_ppo.config_arguments import ARGUMENT_FIELDS, json_text
from fabric_ppo.config_schedule import SCHEDULED, schedule_of
from fabric_ppo.config_values import DROPPED_BY_NONE, NO_TRACKER, TRACKERS
from fabric_ppo.envs.ids import as_module, find_batch, named_function, resolve_env_id, resolve_envpool_id, where_missing
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.files import require_text_path
from fabric_ppo.process.machine import why_no_compiler
from fabric_ppo.run.trackers.make import require_packages

C = TypeVar("C", bound=Config)


def resolve(config: C, world_size: int = 1, ranks_on_host: int = 1) -> C:
    """Check that a Config can run on this machine, and return it with its final values.

    Values have one form, so that equal runs have equal values: the id of the environment that runs,
    its constructor's arguments as JSON, floats as floats, and widths as a tuple. Paths are absolute,
    because the user's code may change the working directory.

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
    takes_gpu = getattr(config, "cuda", False)
    # on a GPU it brings something without a compiler, too: see `fast.captured_step`
    trains_on_gpu = takes_gpu or os.environ.get("LT_ACCELERATOR") in ("cuda", "gpu")
    if config.compile and not trains_on_gpu and (why := why_no_compiler()):
        raise ConfigError(f"--compile: {why}")
    _require_modules(config)
    _require_importable(config, trains_on_gpu)
    of_backend = resolve_envpool_id if config.env_backend == "envpool" else resolve_env_id
    env_id = of_backend(config.env_id, config.env_preset or "")
    if takes_gpu:
        # on one host processes share its GPUs; of several hosts none knows what the others have
        require_cuda(1 if ranks_on_host == world_size else ranks_on_host)
    values = config.to_dict() | {"env_id": env_id, "hidden_sizes": tuple(config.hidden_sizes)}
    if config.env_backend == "sync" and not config.env_preset and find_batch(env_id) is not None:
        values["env_backend"] = "vector"  # there is no single one that this process could step
    values |= {name: None for name in DROPPED_BY_NONE if values[name] == NO_TRACKER}
    values |= {name: json_text(getattr(config, name), name) or None for name in ARGUMENT_FIELDS}
    values |= {name: str(schedule_of(text)) for name in SCHEDULED if isinstance(text := getattr(config, name), str)}
    return replace(config, **values | paths)


def _absolute(path: str | os.PathLike[str] | None) -> str | None:
    """Return an absolute path; the address of a policy on the Hub stays as it is."""
    if path is None or is_hub_address(path):
        return None if path is None else os.fspath(path)
    return os.path.abspath(path)


def _require_modules(config: Config) -> None:
    """Raise a ConfigError for one of the user's own modules that is not found, or is named as a file.

    It names the module's folder, if that is above the run's folder or the working directory.
    """
    near = Path(config.run_dir or os.getcwd())
    for name in ("env_id", "encoder", "optimizer", "env_wrapper", "track", "callback"):
        for each in (getattr(config, name) or "").split(","):
            module, colon, attribute = each.rpartition(":") if name == "env_id" else each.partition(":")
            if not module or not colon:
                continue
            if (expected := as_module(module)) != module:
                raise ConfigError(f"{flag(name)} {each}: {expected}:{attribute} is expected, a module and not its file")
            if where := where_missing([module], near):
                raise ConfigError(f"{flag(name)} {each}: cannot be imported (No module named {module!r}), {where}")


def _require_importable(config: Config, trains_on_gpu: bool) -> None:
    """Raise a ConfigError for one of the user's own parts, `module:name`, that cannot be imported or made."""
    if ":" in config.encoder:
        named_function(config.encoder, "encoder")
    for flag_name in ("env_wrapper", "track", "callback"):
        for name in (getattr(config, flag_name) or "").split(","):
            if name and name not in (*TRACKERS, NO_TRACKER):
                named_function(name, flag_name)
    require_packages(config.track)
    if config.optimizer != "adam" or config.optimizer_kwargs:
        from fabric_ppo.fast.optimizers import require_optimizer

        require_optimizer(config, takes_step=not trains_on_gpu)


def require_cuda(num_devices: int, of: str = "--cuda") -> None:
    """Raise a ConfigError if this host has fewer CUDA devices than the flag `of` needs."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < num_devices:
        needed = f"{num_devices} CUDA device{' is' if num_devices == 1 else 's are'} needed"
        raise ConfigError(f"{of}: {needed} here, {found} found")
