"""Keyword arguments for constructors (`--env-kwargs`, `--optimizer-kwargs`): JSON, in one form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fabric_ppo.config_given import python_scalar
from fabric_ppo.process.errors import ConfigError, first_line, flag

Arguments = str | Mapping[str, Any] | None
"""Value of such a flag: JSON as on the command line, or a mapping as in YAML and from Python."""
OWN_ARGUMENTS = ("id", "render_mode", "disable_env_checker")
"""Arguments of `gymnasium.make` that this program gives itself."""
ARGUMENT_FIELDS = {"env_kwargs": OWN_ARGUMENTS, "optimizer_kwargs": ("params", "lr")}
"""Fields of a Config that hold keyword arguments, and those that this program gives itself."""
_EXAMPLES = {"env_kwargs": '{"enable_wind": true}', "optimizer_kwargs": '{"weight_decay": 0.01}'}
ATARI_ARGUMENTS = ("frameskip", "obs_type")
"""Arguments that `--env-preset atari` gives."""
_JSON = "texts, finite numbers, true, false, null, and lists and mappings of these are expected"
_MOST_VALUES = 10_000


def expected_arguments(field: str) -> str:
    """Return a description of what a field of ARGUMENT_FIELDS takes, for errors."""
    return f"a JSON object such as {_EXAMPLES[field]}"


def arguments_of(given: Arguments, field: str = "env_kwargs") -> dict[str, Any]:
    """Return keyword arguments as JSON has them, sorted by name; empty for none.

    A tuple becomes a list.

    Args:
        given: the value of a flag.
        field: the Config's field, one of ARGUMENT_FIELDS.

    Raises:
        ConfigError: they are no JSON object, or not for the user to give; names what is wrong.
    """
    if given is None:
        return {}
    values = _parsed(given, field) if isinstance(given, str) else given
    if not isinstance(values, Mapping):
        raise ConfigError(f"{flag(field)} {given}: {expected_arguments(field)} is expected")
    arguments = {}
    for name, value in values.items():
        if not isinstance(name, str):
            kind = type(name).__name__
            raise ConfigError(f"{flag(field)} {name!r}: is a {kind}; the name of an argument is expected")
        if name in ARGUMENT_FIELDS[field]:
            raise ConfigError(f"{flag(field)} {name}: this program gives it itself; other arguments are expected")
        arguments[name] = json_value(value, f"{flag(field)} {name}")
    return dict(sorted(arguments.items()))


def json_text(given: Arguments, field: str = "env_kwargs") -> str:
    """Return keyword arguments as JSON, the same text for equal ones; empty for none.

    >>> json_text({"wind_power": 3, "enable_wind": True})
    '{"enable_wind": true, "wind_power": 3}'

    Raises:
        ConfigError: see `arguments_of`.
    """
    arguments = arguments_of(given, field)
    return json.dumps(arguments, sort_keys=True) if arguments else ""


def _parsed(text: str, field: str) -> Any:
    """Return what a JSON text says."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = f"no JSON ({first_line(error)}); {expected_arguments(field)} is expected"
        raise ConfigError(f"{flag(field)} {text}: {reason}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's pairs as a dict; raise a ValueError where a name is there twice."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is there twice")
    return dict(pairs)


def json_value(value: Any, what: str) -> Any:
    """Return a value as JSON gives it back.

    Raises:
        ConfigError: it is none that JSON has; `what` names it.
    """
    try:
        for count, each in enumerate(_parts(value)):
            if count == _MOST_VALUES:
                raise ValueError(f"more than {_MOST_VALUES:,} values")
            if isinstance(each, dict) and not all(isinstance(key, str) for key in each):
                raise TypeError("a mapping whose keys are not texts")
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain)
        text.encode()  # half of a surrogate pair is no text
        return json.loads(text)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{what}: {first_line(error)}; {_JSON}") from None


def _plain(value: Any) -> Any:
    """Return NumPy's scalar as a Python value; raise a TypeError for what is none."""
    plain = python_scalar(value)
    if plain is value:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return plain


def _parts(value: Any) -> Iterator[Any]:
    """Yield a value and all that is nested in it; YAML can nest values endlessly."""
    yield value
    if isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _parts(each)
