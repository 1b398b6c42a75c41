"""Training from Python: a notebook, a sweep, a larger program."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fabric_ppo.config import Config, TorchConfig


def train(config: Config) -> Path:
    """Train in this process, to the same result as `python train_torch.py` with the same flags.

    Ctrl-C raises KeyboardInterrupt; a finished or interrupted run goes on with `resume=True`, as from the command line.

    Returns:
        The run folder, which `load_agent` takes; its `summary.json` holds the figures.

    Raises:
        ConfigError: flags that cannot work.
        EnvironmentFault, TrainingError: what ended the training; a checkpoint from before it is in the folder.
        NotAllWrittenError: done, but something could not be written.
    """
    from fabric_ppo.run import new_run_dir
    from train_torch import main

    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    run_dir = new_run_dir(config, "torch")
    main(TorchConfig(**flags | {"run_dir": str(run_dir)}))
    return run_dir
