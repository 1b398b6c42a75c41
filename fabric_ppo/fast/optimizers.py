"""Optimizers by name (`--optimizer`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
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
_HINTS = {"eps": "; --adam-eps is its epsilon", "weight_decay": "; --optimizer adamw takes it"}


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
            hint = _HINTS.get(unknown[0], "")
            raise ConfigError(f"--optimizer-kwargs {unknown[0]}: {config.optimizer} takes {' and '.join(known)}{hint}")
        make, settings = LeanAdam, {"eps": config.adam_eps} | known | settings
    else:
        make = named_function(config.optimizer, "optimizer")
    with _in_one_line(config, "made"):
        return checked_optimizer(make(params, lr=config.initial_learning_rate, **settings))


def require_optimizer(config: Config, takes_step: bool) -> None:
    """Check that the optimizer can be made, and unless it is for a GPU that it takes a step.

    Raises:
        ConfigError: it cannot.
    """
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = named_optimizer([parameter], config)
    if takes_step:
        with _in_one_line(config, "used"):
            parameter.grad = torch.ones(2)
            optimizer.step()


@contextlib.contextmanager
def _in_one_line(config: Config, what: str) -> Iterator[None]:
    """Turn an error of a class of somebody else's into a ConfigError that names the flags."""
    try:
        yield
    except ConfigError:
        raise
    except USER_ERRORS as error:
        given = json_text(config.optimizer_kwargs, "optimizer_kwargs")
        flags = f"--optimizer {config.optimizer}" + (f" --optimizer-kwargs {given}" if given else "")
        raise ConfigError(one_line(f"{flags}: cannot be {what} ({first_line(error)})")) from None
