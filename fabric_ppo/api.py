"""Training from Python: a notebook, a sweep, a larger program."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fabric_ppo.config import Config, DecoupledConfig, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.launch import read_launch
from fabric_ppo.run.resolve import resolve


def train(config: Config) -> Path:
    """Train in this process, to the same result as `python train_torch.py` with the same flags.

    Ctrl-C raises KeyboardInterrupt; a finished or interrupted run goes on with `resume=True`, as
    from the command line. `quiet=True` prints nothing but warnings.

    Returns:
        The run folder, which `load_agent` takes; its `summary.json` holds the figures.

    Raises:
        ConfigError: flags that cannot work; nothing has been written.
        EnvironmentFault, TrainingError: the training failed; the folder has a checkpoint from
            before.
        NotAllWrittenError: done, but something could not be written.
    """
    if not isinstance(config, Config):
        kind = config.__name__ if isinstance(config, type) else type(config).__name__
        raise ConfigError(f"train({kind}): a Config is expected, as in train(Config(env_id='CartPole-v1'))")
    if isinstance(config, DecoupledConfig):
        raise ConfigError(
            "train(DecoupledConfig): a Config or TorchConfig is expected; player and trainers are several processes, "
            "as in python -m fabric_ppo train decoupled --devices 3"
        )
    launch = read_launch()
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    resolved = resolve(TorchConfig(**flags), launch.world_size, launch.local_world_size)

    from fabric_ppo.run.folder import new_run_dir
    from train_torch import main

    run_dir = new_run_dir(resolved)
    main(dataclasses.replace(resolved, run_dir=str(run_dir)))
    return run_dir
