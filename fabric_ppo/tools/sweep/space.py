"""Space of a sweep: the flags of a YAML file, some of them to be searched, all of them checked."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fabric_ppo.config import AlgorithmFlags, EnvironmentFlags, NetworkFlags, TorchConfig
from fabric_ppo.config_arguments import ARGUMENT_FIELDS, json_text
from fabric_ppo.config_values import field_types, plain_value, takes_float, takes_int
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.tools.flags import from_yaml, load_yaml, read_mapping, typed_flags
from fabric_ppo.tools.locate import config_path

_CAN_BE_SEARCHED = {
    field.name for flags in (EnvironmentFlags, AlgorithmFlags, NetworkFlags) for field in dataclasses.fields(flags)
} - {"env_id"}
"""Flags of environment, algorithm and networks; returns of several environments cannot be compared."""
_OF_THE_SWEEP = {
    "seed": "each trial trains seeds from 1 up, see --seeds",
    **dict.fromkeys(("run_dir", "resume", "log_dir"), "the sweep gives each run a folder, see --dir"),
}
"""Flags that a space file cannot have, and why."""
_FORMS = "{low: L, high: H}, with log: true or step: S, or {choices: [A, B]}"
_MOST_CORNERS = 512
"""Number of combinations of ends and choices that are checked; of more of them, so many at random."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high

    def to_yaml(self) -> dict[str, Any]:
        """Return it as a space file has it."""
        more = {"log": True} if self.log else {} if self.step is None else {"step": self.step}
        return {"low": self.low, "high": self.high, **more}


@dataclass(frozen=True)
class Choices:
    """Values of any type that a flag has, at least one."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def to_yaml(self) -> dict[str, Any]:
        """Return them as a space file has them."""
        return {"choices": [list(each) if isinstance(each, tuple) else each for each in self.values]}

    @property
    def labels(self) -> dict[Any, Any]:
        """Label -> value: Optuna stores numbers, texts, booleans and None; of others it gets JSON."""
        is_plain = (str, bool, int, float, type(None))
        return {each if isinstance(each, is_plain) else json.dumps(each): each for each in self.values}


@dataclass(frozen=True)
class Space:
    """Flags of a sweep's runs.

    Attributes:
        fixed: those that all trials have, field name -> value.
        searched: those that trials try values of.
    """

    fixed: Mapping[str, Any]
    searched: Mapping[str, Range | Choices]

    def flags(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the flags of a trial, field name -> value, from the values as Optuna has them."""
        found = {}
        for name, value in params.items():
            search = self.searched[name]
            found[name] = search.labels[value] if isinstance(search, Choices) else value
        return {**self.fixed, **found}

    def to_yaml(self) -> dict[str, Any]:
        """Return the flags as a space file has them; those of its `config` are among them."""
        return plain_flags(self.fixed) | {name: search.to_yaml() for name, search in self.searched.items()}


def plain_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags, field name -> value, with values of types that YAML has."""
    kinds = field_types(TorchConfig)
    return {name: plain_value(name, value, kinds[name]) for name, value in flags.items()}


def read_space(path: str) -> Space:
    """Read and check a space file.

    Raises:
        ConfigError: a flag or what it is searched in cannot work; names it.
    """
    of = "sweep"
    values = {key.replace("-", "_"): value for key, value in read_mapping(path, of).items()}
    base = values.pop("config", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{of} {path}: config {_shown(base)}: a YAML file of flags or the name of a preset")
    fixed = load_yaml(config_path(base), TorchConfig) if base else {}
    known = {field.name for field in dataclasses.fields(TorchConfig)}
    asked = {key: value for key, value in values.items() if key in known and _is_search(key, value)}
    # the value of an unknown flag says nothing about its name
    given = {key: value if key in known else None for key, value in values.items() if key not in asked}
    fixed |= typed_flags(given, path, TorchConfig, of)
    for name, why in _OF_THE_SWEEP.items():
        if name in fixed or name in asked:
            raise ConfigError(f"{of} {path}: {name}: cannot be in a space; {why}")
    searched = {name: _search(f"{of} {path}: {name}", name, value) for name, value in asked.items()}
    if not searched:
        raise ConfigError(f"{of} {path}: no flag to be searched; one such as learning_rate: {_FORMS} is expected")
    space = Space({name: value for name, value in fixed.items() if name not in searched}, searched)
    _check_runs(f"{of} {path}", space)
    return space


def _is_search(name: str, value: Any) -> bool:
    """Return True for a mapping that says what a flag is searched in, and is not the value of --env-kwargs or such."""
    return isinstance(value, dict) and (name not in ARGUMENT_FIELDS or value.keys() == {"choices"})


def _search(of: str, name: str, given: dict[Any, Any]) -> Range | Choices:
    """Return what a flag is searched in; raise a ConfigError that begins with `of`."""
    kinds = field_types(TorchConfig)
    if name not in _CAN_BE_SEARCHED:
        raise ConfigError(f"{of}: cannot be searched; flags of environment, algorithm and networks can")
    if given.keys() == {"choices"}:
        return _choices(of, name, given["choices"], kinds[name])
    if not {"low", "high"} <= given.keys() <= {"low", "high", "log", "step"}:
        raise ConfigError(f"{of} {_shown(given)}: {_FORMS} is expected")
    if kinds[name] == tuple[int, ...] or not (takes_int(kinds[name]) or takes_float(kinds[name])):
        raise ConfigError(f"{of}: has no numbers between low and high; {{choices: [A, B]}} is expected")
    return _range(of, name, given, kinds[name])


def _choices(of: str, name: str, given: Any, kind: Any) -> Choices:
    """Return choices of a flag's values, each of its type and given once."""
    if not isinstance(given, list) or len(given) < 2:
        raise ConfigError(f"{of}: choices {_shown(given)}: a list of at least two values is expected")
    found = Choices(tuple(_value(of, name, each, kind) for each in given))
    if len(found.labels) < len(found.values):
        raise ConfigError(f"{of}: choices {_shown(given)}: each value once is expected")
    return found


def _range(of: str, name: str, given: dict[Any, Any], kind: Any) -> Range:
    """Return a range of numbers of a flag's type, checked."""
    low, high = (_number(f"{of}: {end}", name, given[end], kind) for end in ("low", "high"))
    log, step = given.get("log", False), given.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{of}: log {_shown(log)}: true or false is expected")
    if low > high:
        raise ConfigError(f"{of}: low {low} is above high {high}")
    if log and low <= 0:
        raise ConfigError(f"{of}: low {low}: with log a number above 0 is expected")
    if log and step is not None:
        raise ConfigError(f"{of}: step and log exclude each other; one of the two is expected")
    if step is not None:
        step = _number(f"{of}: step", name, step, kind)
        if step <= 0:
            raise ConfigError(f"{of}: step {step}: a number above 0 is expected")
        # as they are written: 0.3 is three times 0.1
        width, part = Decimal(str(high)) - Decimal(str(low)), Decimal(str(step))
        if width % part:
            nearest = type(high)(Decimal(str(low)) + width // part * part)
            raise ConfigError(f"{of}: high {high}: low and a multiple of step {step} is expected, such as {nearest}")
    return Range(low, high, log, step)


def _number(of: str, name: str, given: Any, kind: Any) -> float:
    """Return a finite number of a flag's type."""
    value = _value(of, name, given, kind)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{of} {_shown(given)}: a number is expected")
    return value if takes_int(kind) else float(value)


def _value(of: str, name: str, given: Any, kind: Any) -> Any:
    """Return a value of a flag's type, as YAML files have it."""
    try:
        return from_yaml(name, given, kind)
    except ConfigError as error:
        reason = str(error).partition(": ")[2]
        raise ConfigError(f"{of} {_shown(given)}: {reason}") from None


def _shown(value: Any) -> str:
    """Return a value of a YAML file in few words."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_runs(of: str, space: Space) -> None:
    """Raise a ConfigError for flags that no run can have, and for combinations that `Config` refuses."""
    first = True
    for values in _corners(space):
        try:
            config = TorchConfig(**{**space.fixed, **values})
            config.num_updates(1)
            if config.test_episodes < 1:
                raise ConfigError(
                    "--test-episodes 0: a trial's value is the return of its tests; 1 or more is expected"
                )
            if first:
                _check_environment(config)
        except ConfigError as error:
            chosen = ", ".join(f"{flag(name)} {_shown(value)}" for name, value in values.items())
            raise ConfigError(f"{of}: {error} (tried: {chosen})") from None
        first = False


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """Yield combinations of ends and choices: all, or where these are too many, each value and some at random."""
    ends = [search.ends for search in space.searched.values()]
    found: Iterator[tuple[Any, ...]] = itertools.product(*ends)
    if math.prod(map(len, ends)) > _MOST_CORNERS:
        draw, firsts = random.Random(0), [each[0] for each in ends]
        alone = [(*firsts[:i], value, *firsts[i + 1 :]) for i, own in enumerate(ends) for value in own]
        found = iter([*alone, *(tuple(map(draw.choice, ends)) for _ in range(_MOST_CORNERS))])
    for values in found:
        yield dict(zip(space.searched, values, strict=True))


def _check_environment(config: TorchConfig) -> None:
    """Raise a ConfigError where modules or the environment cannot be had on this machine."""
    from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
    from fabric_ppo.envs.ids import find_batch
    from fabric_ppo.run.resolve import resolve

    resolved = resolve(config)
    if find_batch(resolved.env_id) is None:
        wrapper = resolved.env_preset or resolved.env_wrapper or ""
        make_gymnasium_env(resolved.env_id, wrapper, env_kwargs=json_text(resolved.env_kwargs)).close()
