"""Checks of the results of functions that users may edit or replace; each error is one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fabric_ppo.process.errors import ConfigError, TrainingError
from fabric_ppo.rollouts.buffer import Rollout

T = TypeVar("T", bound=NamedTuple)


def checked_losses(found: Any, names: Sequence[str]) -> Any:
    """Return the result of `ppo_loss` if it is a tuple of one scalar for each of `names`.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(found, (tuple, list)) or len(found) != len(names):
        raise ConfigError(f"ppo_loss returned {_described(found)}: Losses({', '.join(names)}) is expected")
    for name, value in zip(names, found, strict=True):
        if not _is_scalar(value):
            raise ConfigError(f"ppo_loss returned Losses with {name} {_described(value)}: a scalar tensor is expected")
    return found


def checked_minibatch_loss(found: Any, expected: type[T], num_parts: int) -> T:
    """Return the result of `minibatch_loss` if its gradient can be computed.

    Args:
        found: the result.
        expected: the required named tuple, with fields `loss` and `parts`.
        num_parts: number of the loss's parts.

    Raises:
        ConfigError: it has another type, its loss is no scalar with a gradient, or its parts are not
            `num_parts` numbers.
    """
    if not isinstance(found, expected):
        raise ConfigError(f"minibatch_loss returned {_described(found)}: a {expected.__name__} is expected")
    loss, parts = found
    whose = f"minibatch_loss returned a {expected.__name__} with"
    if not _is_scalar(loss):
        raise ConfigError(f"{whose} loss {_described(loss)}: a scalar tensor is expected")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ConfigError(
            f"{whose} a loss without a gradient: one that is computed from what the agent returned is expected, "
            "as of ppo_loss, without detach() or item()"
        )
    if not isinstance(parts, Tensor) or parts.shape != (num_parts,):
        raise ConfigError(f"{whose} parts {_described(parts)}: a tensor of {num_parts} numbers is expected")
    return found


def checked_advantages(found: Any, rollout: Rollout, update: int) -> tuple[Tensor, Tensor]:
    """Return the result of `gae` if it is advantages and returns of a rollout, each `[T, N]`.

    Args:
        found: the result.
        rollout: the rollout from which it was computed.
        update: updates before this one, for the text.

    Raises:
        ConfigError: it is something else.
        TrainingError: it is not finite, although rewards and values are.
    """
    shape = list(rollout.values.shape)
    expected = f"advantages and returns, tensors of shape {shape}, are expected"
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise ConfigError(f"gae returned {_described(found)}: {expected}")
    for each in found:
        if not isinstance(each, Tensor) or each.shape != rollout.values.shape:
            raise ConfigError(f"gae returned {_described(each)} among its two: {expected}")
    # a sum takes a few microseconds: where it is finite, and that is nearly always, so are its terms
    if not all(math.isfinite(each.sum().item()) for each in found):
        _require_finite(dict(zip(("advantages", "returns"), found, strict=True)), rollout, update)
    return found[0], found[1]


def _require_finite(estimated: dict[str, Tensor], rollout: Rollout, update: int) -> None:
    """Raise a TrainingError if advantages or returns are not finite, although rewards and values are."""
    if not all(bool(each.isfinite().all()) for each in (rollout.rewards, rollout.values, rollout.next_values)):
        return  # not the estimator's fault: the guard of the run reports it
    for name, each in estimated.items():
        if not bool(each.isfinite().all()):
            what = "NaN" if bool(each.isnan().any()) else "inf"
            raise TrainingError(
                f"update {update + 1}: gae returned {what} among its {name}, though rewards and values are finite; "
                "mend what is edited or replaced in ppo/advantages.py, or normalize large rewards?"
            )


def checked_optimizer(found: Any) -> torch.optim.Optimizer:
    """Return the result of `make_optimizer` if it is an optimizer that the scripts can step.

    Its step needs no closure, and its groups have learning rates.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(found, torch.optim.Optimizer):
        what = f"the class {found.__name__}" if isinstance(found, type) else _described(found)
        raise ConfigError(f"make_optimizer returned {what}: a torch.optim.Optimizer is expected")
    name_of_type = type(found).__name__
    if not all("lr" in group for group in found.param_groups):
        raise ConfigError(
            f"make_optimizer returned {name_of_type} with a parameter group that has no lr: one in each is expected, "
            "for --learning-rate to change"
        )
    needed = [
        name
        for name, each in inspect.signature(found.step).parameters.items()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(
            f"make_optimizer returned {name_of_type}, whose step() needs a {needed[0]}: one whose step() needs "
            "no arguments is expected, such as torch.optim.Adam"
        )
    return found


def checked_norm(found: Any, step: Callable[..., Any]) -> Tensor:
    """Return the result of a script's step if it is a scalar tensor.

    Raises:
        ConfigError: it is not; the text names the step by its file.
    """
    if not _is_scalar(found):
        raise ConfigError(
            f"{_name_of(step)} returned {_described(found)}: the gradient's norm, a scalar tensor, is expected, "
            "as clip_gradient() and torch.nn.utils.clip_grad_norm_ return it"
        )
    norm: Tensor = found
    return norm


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _described(value: Any) -> str:
    """Return a short description of a value."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _name_of(function: Callable[..., Any]) -> str:
    """Return a function's name and file, as in `step of train_torch.py`."""
    code = getattr(function, "__code__", None)
    return "step" if code is None else f"{code.co_name} of {Path(code.co_filename).name}"
