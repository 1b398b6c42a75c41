"""Calls from Python, of `Config` and of functions: what the arguments may be, and what wrong ones are answered."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from fabric_ppo.config_given import format_given, path_text, python_scalar, python_sequence, whole_number
from fabric_ppo.config_names import argument_hint, python_hint
from fabric_ppo.config_values import LISTS, NAMES, PATHS, field_types, takes_float, takes_int
from fabric_ppo.process.errors import ConfigError

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")
Hint = Callable[[str, Mapping[str, Any]], str]
"""Function from the name of an argument and those that a function has to the end of an error."""


def called_from_python(config_type: type[C]) -> type[C]:
    """Have a dataclass of flags take NumPy's values, and answer names that it does not have.

    Its `__init__` then raises a ConfigError for such names.
    """
    build = config_type.__init__

    @functools.wraps(build)
    def init(self: Any, *args: Any, **given: Any) -> None:
        kinds = field_types(config_type)
        for name in given:
            if name not in kinds:
                call = f"{config_type.__name__}({name}=...)"
                raise ConfigError(f"{call}: {_hint(config_type, name, kinds)}")
        if len(args) > len(kinds):
            raise ConfigError(f"{config_type.__name__}(...): {len(args)} values without a name; there are {len(kinds)}")
        positional = [_plain(name, value, kinds[name]) for name, value in zip(kinds, args, strict=False)]
        build(self, *positional, *args[len(positional) :], **{n: _plain(n, v, kinds[n]) for n, v in given.items()})

    config_type.__init__ = init  # type: ignore[method-assign]
    return config_type


def answering(expected: str, hint: Hint = argument_hint) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that has a function answer arguments that it does not have, or lacks.

    The function then raises a ConfigError for them. Their values are for the function itself to check.

    Args:
        expected: what the first argument is, for the error where it is missing.
        hint: end of the error about a name that the function does not have.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters
        own = {name: each for name, each in parameters.items() if name != "self"}
        by_place = [name for name, each in own.items() if each.kind == each.POSITIONAL_OR_KEYWORD]
        needed = [name for name, each in own.items() if each.default is each.empty]
        extra = len(parameters) - len(own)  # `self`
        title = f"{function.__name__}("

        @functools.wraps(function)
        def call(*args: P.args, **given: P.kwargs) -> R:
            count = len(args) - extra
            for name in given:
                if name not in own:
                    raise ConfigError(f"{title}{name}=...): {hint(name, own)}")
                if name in by_place[:count]:
                    raise ConfigError(f"{title}{name}=...): it is given twice")
            if count > len(by_place):
                named = ", ".join(by_place)
                raise ConfigError(f"{title}...): {count} values without a name; {named} can be given so")
            for place, name in enumerate(needed):
                if place >= count and name not in given:
                    raise ConfigError(f"{title}): {expected if place == 0 else name} is expected")
            return function(*args, **given)

        return call

    return decorate


def path_argument(function: str, given: Any, expected: str) -> str:
    """Return a path that a function is given, as text.

    Raises:
        ConfigError: it is no path, or an empty one; `expected` is what would be right.
    """
    path = python_scalar(path_text(given))
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{function}({format_given(given)}): {expected} is expected")
    return path


def switch_argument(function: str, name: str, given: Any) -> bool:
    """Return an argument of a function that is True or False; raise a ConfigError for what is neither."""
    value = python_scalar(given)
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        raise ConfigError(f"{function}({name}={format_given(given)}): True or False is expected")
    return bool(value)


def _hint(config_type: type[Any], name: str, kinds: dict[str, Any]) -> str:
    """Return the hint about a name that no field has; it may be another script's."""
    others: list[type] = [*config_type.__subclasses__(), *config_type.__mro__[1].__subclasses__()]
    owners = dict.fromkeys(other.__name__ for other in others if name in other.__annotations__)
    if "TorchConfig" in owners:
        return f"it is one of TorchConfig, as in train(TorchConfig({name}=...))"
    if owners:
        return "it is one of train_fabric_decoupled.py, as in python -m fabric_ppo train decoupled --devices 2"
    return python_hint(name, kinds)


def _plain(name: str, value: Any, kind: Any) -> Any:
    """Return the value of a field as it is kept; one that cannot work is left to the checks."""
    if name in PATHS:
        return path_text(python_scalar(value))
    if kind == tuple[int, ...]:
        items = python_sequence(value)
        return tuple(map(whole_number, items)) if isinstance(items, tuple) else items
    if name in LISTS and isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value):
        value = ",".join(map(python_scalar, value))
    value = python_scalar(value)
    if name in NAMES and isinstance(value, str):
        return re.sub(r"\s*,\s*|\s+", ",", value.strip())
    return whole_number(value) if takes_int(kind) and not takes_float(kind) else value
