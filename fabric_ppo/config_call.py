"""Calls of `Config` from Python: what the arguments may be, and what wrong ones are answered."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from fabric_ppo.config_given import path_text, python_scalar, python_sequence, whole_number
from fabric_ppo.config_names import python_hint
from fabric_ppo.config_values import LISTS, PATHS, field_types, takes_float, takes_int
from fabric_ppo.process.errors import ConfigError

C = TypeVar("C")


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
        positional = [_plain(name, value, kinds[name]) for name, value in zip(kinds, args, strict=False)]
        build(self, *positional, *args[len(positional) :], **{n: _plain(n, v, kinds[n]) for n, v in given.items()})

    config_type.__init__ = init  # type: ignore[method-assign]
    return config_type


def _hint(config_type: type[Any], name: str, kinds: dict[str, Any]) -> str:
    """Return the hint about a name that no field has; it may be another script's."""
    others: list[type] = [*config_type.__subclasses__(), *config_type.__mro__[1].__subclasses__()]
    owners = dict.fromkeys(other.__name__ for other in others if name in other.__annotations__)
    if owners:
        return f"it is one of {' and '.join(owners)}"
    return python_hint(name, kinds)


def _plain(name: str, value: Any, kind: Any) -> Any:
    """Return the value of a field as it is kept; one that cannot work is left to the checks."""
    if name in PATHS:
        return path_text(python_scalar(value))
    if kind == tuple[int, ...]:
        items = python_sequence(value)
        return tuple(map(whole_number, items)) if isinstance(items, tuple) else items
    if name in LISTS and isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value):
        return ",".join(map(python_scalar, value))
    value = python_scalar(value)
    return whole_number(value) if takes_int(kind) and not takes_float(kind) else value
