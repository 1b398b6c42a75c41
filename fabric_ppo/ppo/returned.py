"""Checks of what functions return that users edit or replace: their errors are one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fabric_ppo.process.errors import ConfigError

T = TypeVar("T", bound=NamedTuple)


def checked_losses(found: Any, names: Sequence[str]) -> Any:
    """Return what `ppo_loss` has returned, if it is a tuple of one scalar for each of `names`.

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
    """Return what `minibatch_loss` has returned, if a gradient can be computed of it.

    Args:
        found: what it has returned.
        expected: the named tuple that it has to be, with fields `loss` and `parts`.
        num_parts: number of the loss's parts.

    Raises:
        ConfigError: it is another type, its loss is no scalar with a gradient, or its parts are not
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


def checked_advantages(found: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `gae` has returned, if it is advantages and returns of the shape of `like`, `[T, N]`.

    Raises:
        ConfigError: it is not.
    """
    shape = list(like.shape)
    expected = f"advantages and returns, tensors of shape {shape}, are expected"
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise ConfigError(f"gae returned {_described(found)}: {expected}")
    for each in found:
        if not isinstance(each, Tensor) or each.shape != like.shape:
            raise ConfigError(f"gae returned {_described(each)} among its two: {expected}")
    return found[0], found[1]


def checked_norm(found: Any, step: Callable[..., Any]) -> Tensor:
    """Return what a script's step has returned, if it is a scalar tensor.

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
    """Return what a value is, in a few words."""
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
