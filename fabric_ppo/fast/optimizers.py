"""Optimizers by name (`--optimizer`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fabric_ppo.config import Config
from fabric_ppo.config_arguments import arguments_of, json_text
from fabric_ppo.config_values import OPTIMIZERS
from fabric_ppo.envs.ids import named_function
from fabric_ppo.fast.adam import LeanAdam
from fabric_ppo.ppo.returned import checked_optimizer
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, first_line, one_line

_BETAS = {"betas": (0.9, 0.999)}
_SETTINGS: dict[str, dict[str, Any]] = {"adam": _BETAS, "adamw": _BETAS | {"weight_decay": 0.01}}
"""Settings of the built-in optimizers besides learning rate and epsilon, with their defaults."""


def named_optimizer(params: Iterable[Any], config: Config) -> torch.optim.Optimizer:
    """Make the optimizer that `--optimizer` names, with the settings of `--optimizer-kwargs`.

    Args:
        params: parameters, or groups of them.
        config: hyperparameters.

    Raises:
        ConfigError: the class cannot be imported or made with these settings, or makes no optimizer
            that the scripts can step.
    """
    settings = arguments_of(config.optimizer_kwargs, "optimizer_kwargs")
    make: Callable[..., Any]
    if config.optimizer in OPTIMIZERS:
        known = _SETTINGS[config.optimizer]
        if unknown := [name for name in settings if name not in known]:
            raise ConfigError(f"--optimizer-kwargs {unknown[0]}: {config.optimizer} takes {' and '.join(known)}")
        make, settings = LeanAdam, {"eps": config.adam_eps} | known | settings
    else:
        make = named_function(config.optimizer, "optimizer")
    try:
        return checked_optimizer(make(params, lr=config.initial_learning_rate, **settings))
    except ConfigError:
        raise
    except USER_ERRORS as error:
        given = json_text(config.optimizer_kwargs, "optimizer_kwargs")
        what = f"--optimizer {config.optimizer}" + (f" --optimizer-kwargs {given}" if given else "")
        raise ConfigError(one_line(f"{what}: cannot be made ({first_line(error)})")) from None
