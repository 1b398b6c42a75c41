"""State of any PyTorch optimizer, as tensors and numbers for checkpoints and packets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fabric_ppo.process.errors import ConfigError

_NOT_OF_GROUPS = ("params", "lr", "initial_lr")
"""Entries of a parameter group that are no state: schedules set the learning rate."""

_GROUPS = "groups."
NO_SETTINGS: Mapping[str, Any] = {}
"""Unknown settings: all numbers of a state are loaded."""


@dataclass(frozen=True)
class OptimizerState:
    """State of an optimizer of any class.

    An entry of a parameter is named `<index of the parameter>.<name>`, one of a parameter group
    `groups.<index>.<name>`, and any other `<name>.`. Only the optimizer itself knows the meaning of
    the last part.

    Attributes:
        tensors: name -> tensor.
        values: JSON values: the optimizer's `class`, its `numbers` (name -> number, text, None or
            list of these), and the names of `tensors`. Empty in checkpoints of older versions.
    """

    tensors: Mapping[str, Tensor]
    values: dict[str, Any]

    def require_fit(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if the optimizer's class is another, or the tensors are not the declared ones."""
        if not self.values:
            return
        if self.values["class"] != class_of(optimizer):
            raise ValueError(f"its optimizer is {self.values['class']}, this one is {class_of(optimizer)}")
        if odd := sorted(self.tensors.keys() ^ set(self.values["tensors"])):
            raise ValueError(f"optimizer.{odd[0]} is {'unknown' if odd[0] in self.tensors else 'missing'}")


def read_optimizer(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Return the state of an optimizer, with its tensors themselves, not copies.

    Raises:
        ConfigError: an entry is neither tensor nor number.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    whole = optimizer.state_dict()
    for index, entry in whole["state"].items():
        for name, value in entry.items() if isinstance(entry, Mapping) else [("", entry)]:
            if not isinstance(value, Tensor) and not _is_plain(value):
                kind = type(value).__name__
                raise ConfigError(
                    f"{class_of(optimizer)}: its state has a {kind}, {name or index}; tensors and numbers can be saved"
                )
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{name}"] = value
    for index, group in enumerate(whole["param_groups"]):
        for name, value in group.items():
            if name not in _NOT_OF_GROUPS and isinstance(value, Tensor):
                tensors[f"groups.{index}.{name}"] = value
            elif name not in _NOT_OF_GROUPS and _is_plain(value):
                numbers[f"groups.{index}.{name}"] = value
    values = {"class": class_of(optimizer), "numbers": numbers, "tensors": list(tensors)}
    return OptimizerState(tensors, values)


def settings_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the numbers of a new optimizer's groups, `groups.<index>.<name>`, as JSON values."""
    numbers = read_optimizer(optimizer).values["numbers"]
    settings: dict[str, Any] = json.loads(json.dumps({key: numbers[key] for key in numbers if key.startswith(_GROUPS)}))
    return settings


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: OptimizerState, settings: Mapping[str, Any] = NO_SETTINGS
) -> None:
    """Load the result of `read_optimizer` into an optimizer.

    Args:
        optimizer: keeps the settings with which it was made, such as a weight decay.
        state: state of an optimizer of the same class.
        settings: result of `settings_of` when that one was made. Numbers of its groups that have not
            changed since are settings, not state.

    Raises:
        ValueError: it is the state of another optimizer.
    """
    state.require_fit(optimizer)
    whole = optimizer.state_dict()
    groups = [dict(group) for group in whole["param_groups"]]
    entries: dict[int | str, Any] = {}
    # copies, for an optimizer changes the tensors that it loads in place
    copies = {name: tensor.clone() for name, tensor in state.tensors.items()}
    numbers = {
        key: value
        for key, value in state.values.get("numbers", {}).items()
        if key not in settings or settings[key] != value
    }
    for key, value in (copies | numbers).items():
        index, _, name = key.partition(".")
        if index == "groups":
            index, _, name = name.partition(".")
            groups[int(index)][name] = _like(groups[int(index)].get(name), value, name)
        elif name:
            entries.setdefault(int(index) if index.isdecimal() else index, {})[name] = value
        else:
            entries[index] = value
    optimizer.load_state_dict(whole | {"state": entries, "param_groups": groups})
    _restore_types(optimizer, entries)


def _restore_types(optimizer: torch.optim.Optimizer, entries: Mapping[int | str, Any]) -> None:
    """Restore the types of tensors, which `load_state_dict` converts to that of the weights."""
    params = [each for group in optimizer.param_groups for each in group["params"]]
    for index, parameter in enumerate(params):
        for name, loaded in optimizer.state.get(parameter, {}).items():
            saved = entries.get(index, {}).get(name)
            if isinstance(saved, Tensor) and name != "step" and loaded.dtype != saved.dtype:
                optimizer.state[parameter][name] = saved.to(loaded.device)


def _like(own: Any, value: Any, name: str) -> Any:
    """Return a group's value with the optimizer's type: JSON has no tuples."""
    if isinstance(own, tuple) and isinstance(value, list):
        return tuple(value)
    if own is not None and value is not None:
        numbers = [isinstance(each, (int, float)) for each in (own, value)]
        if numbers[0] != numbers[1] or (not numbers[0] and type(own) is not type(value)):
            raise ValueError(f"{name} of its optimizer is of another kind")
    return value


def _is_plain(value: Any) -> bool:
    """Return True for a JSON value that may be a number of an optimizer."""
    if isinstance(value, (list, tuple)):
        return all(each is None or isinstance(each, (int, float, str)) for each in value)
    return value is None or isinstance(value, (int, float, str))


def class_of(optimizer: torch.optim.Optimizer) -> str:
    """Return the name of an optimizer's class, also of one that Fabric has wrapped."""
    kind = type(getattr(optimizer, "optimizer", optimizer))
    return f"{kind.__module__}.{kind.__qualname__}"
