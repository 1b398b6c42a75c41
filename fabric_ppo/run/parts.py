"""The user's own parts that are passed to `train` as objects: callbacks and trackers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric_ppo.process.errors import USER_ERRORS, ConfigError
from fabric_ppo.process.frames import locate_error
from fabric_ppo.run.callbacks import Callback
from fabric_ppo.run.slips import print_uncalled_methods
from fabric_ppo.run.trackers.tracker import Tracker


@dataclass(frozen=True)
class Parts:
    """Callbacks and trackers, called after those of the flags; only rank 0's are used."""

    callbacks: Sequence[Callback] = ()
    trackers: Sequence[Tracker] = ()


NO_PARTS = Parts()
"""No objects, only those of the flags."""


def parts_of(callbacks: Sequence[Any], trackers: Sequence[Any]) -> Parts:
    """Return objects as `Parts`; an object is made of each class.

    Raises:
        ConfigError: an object has another type, or cannot be made.
    """
    return Parts(_objects("callbacks", callbacks, Callback), _objects("trackers", trackers, Tracker))


def name_of(part: object) -> str:
    """Return the name of an object's class, as in a flag: `module:Class`."""
    return f"{type(part).__module__}:{type(part).__qualname__}"


def _objects(argument: str, given: Any, kind: type[Any]) -> list[Any]:
    """Return the objects in an argument of `train`; raise a ConfigError as `parts_of`."""
    if not isinstance(given, (list, tuple)):
        raise ConfigError(f"train({argument}={_kind(given)}): a list of {kind.__name__} objects is expected")
    made = []
    for each in given:
        try:
            part = each() if isinstance(each, type) and issubclass(each, kind) else each
        except USER_ERRORS as error:
            raise ConfigError(f"train({argument}=[{each.__name__}]): it raised {locate_error(error)}") from error
        if not isinstance(part, kind):
            expected = f"an object or a subclass of {kind.__module__}.{kind.__name__}"
            raise ConfigError(f"train({argument}=[{_kind(each)}]): {expected} is expected")
        print_uncalled_methods(part, kind, f"train({argument}=[{type(part).__name__}])")
        made.append(part)
    return made


def _kind(given: object) -> str:
    return given.__name__ if isinstance(given, type) else type(given).__name__
