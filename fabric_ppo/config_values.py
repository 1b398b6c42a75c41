"""Values that flags take: their types, the rules of each, and of those that need each other."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fabric_ppo.config_arguments import ATARI_ARGUMENTS, Arguments, arguments_of, expected_arguments
from fabric_ppo.config_given import format_given, names_of
from fabric_ppo.config_info_keys import info_keys_of
from fabric_ppo.config_schedule import SCHEDULED, SCHEDULES, Scheduled, require_schedule, schedule_of
from fabric_ppo.process.errors import ConfigError, flag

LEARNING_RATES = (1e-5, 1e-2)
"""Least and greatest learning rate that `--desired-kl` sets."""
LOG_STD = (-20.0, 2.0)
"""Range of the initial log standard deviation, and by default of a network's output with
`--state-dependent-std`."""
ATARI = "atari"
"""Value of `--env-preset`; an EnvSpec has it in the place of a wrapper."""
OPTIMIZERS = ("adam", "adamw")
"""Built-in values of `--optimizer`."""
ENCODERS = ("auto", "flatten", "nature", "impala", "small")
"""Built-in values of `--encoder`."""
TRACKERS = ("tensorboard", "jsonl", "wandb", "mlflow", "trackio")
"""Built-in values of `--track`."""
NO_TRACKER = "none"
"""Value of `--track` for none at all."""
DROPPED_BY_NONE = ("callback", "info_keys", "track_tags")
"""Fields in which `none` is no name: with it a resumed run drops what it had. `resolve` makes None of it."""

LISTS = ("callback", "track", "track_tags", "env_wrapper", "obs_keys", "critic_keys", "info_keys")
"""Fields that hold several names, with commas between them; from Python a list of them will do."""
PATHS = ("config", "run_dir", "log_dir", "init_from")
"""Fields that hold the path of a folder or file, as text or `os.PathLike`."""


def field_types(config_type: type) -> dict[str, Any]:
    """Return field name -> type of its annotation."""
    kinds = get_type_hints(config_type)
    return {field.name: kinds[field.name] for field in dataclasses.fields(config_type)}


def accepted_values(name: str, kind: Any) -> str:
    """Return a description of the values that field `name`, of this type, takes, for errors."""
    if choices := choices_of(kind):
        others = ", or None" if type(None) in get_args(kind) else ""
        return "one of " + ", ".join(choices) + others
    if kind == tuple[int, ...]:
        return "a list of whole numbers, such as 64 64,"
    if kind == Arguments:
        return expected_arguments(name)
    if kind == Scheduled:
        return f"a number, or {SCHEDULES},"
    alternatives = [part for part in get_args(kind) if part is not type(None)] or [kind]
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[alternatives[0]]


def has_type(value: Any, kind: Any) -> bool:
    """Return True if a field of type `kind` takes `value`.

    A list may stand for a tuple and an int for a float; a bool is no number.
    """
    if choices := choices_of(kind):
        return value in choices or (value is None and type(None) in get_args(kind))
    if kind == tuple[int, ...]:
        return isinstance(value, (tuple, list)) and len(value) > 0 and all(type(item) is int for item in value)
    if kind == Arguments:
        return value is None or isinstance(value, (str, Mapping))
    if type(value) is int and takes_float(kind):
        return abs(value) < 2**1023  # no float is larger
    return type(value) in (get_args(kind) or (kind,))


def choices_of(kind: Any) -> tuple[str, ...]:
    """Return the values of a Literal, also of one that may be None instead; of others nothing."""
    literals = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    return get_args(literals[0]) if literals else ()


def takes_float(kind: Any) -> bool:
    """Return True if a field of type `kind` takes floats."""
    return kind is float or float in get_args(kind)


def takes_int(kind: Any) -> bool:
    """Return True if a field of type `kind` takes whole numbers."""
    return kind is int or int in get_args(kind)


def format_value(value: Any) -> str:
    """Return a value as text for an error; of a nested part only its type."""
    # YAML can nest values endlessly
    parts = value if isinstance(value, (tuple, list)) else (value,)
    nested = (list, tuple, dict, set)
    return " ".join(f"({type(part).__name__})" if isinstance(part, nested) else str(part) for part in parts)


def plain_value(name: str, value: Any, kind: Any) -> Any:
    """Return a field's value for YAML.

    That is a list for a tuple, a float for an int where floats are meant, a mapping for JSON.
    """
    if kind == Arguments:
        return arguments_of(value, name) or None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple):
        return list(value)
    return float(value) if type(value) is int and takes_float(kind) else value


def _require(config: Any, name: str, holds: bool, accepted: str) -> None:
    """Raise a ConfigError about the value of field `name` unless `holds`."""
    if not holds:
        value = format_value(getattr(config, name))
        raise ConfigError(f"{flag(name)} {value}".rstrip() + f": {accepted} is expected")


_Rule = tuple[Callable[[Any], bool], str]
"""Test of a field's value, and a description of the values that pass it."""


_COUNT: _Rule = (lambda value: value >= 1, "a whole number from 1 up")
_COUNT_OR_ZERO: _Rule = (lambda value: value >= 0, "a whole number from 0 up")
_POSITIVE: _Rule = (lambda value: 0 < value < math.inf, "a number above 0")
_NON_NEGATIVE: _Rule = (lambda value: 0 <= value < math.inf, "a number from 0 up")
_UNIT_INTERVAL: _Rule = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
_LOG_STD: _Rule = (
    lambda value: LOG_STD[0] <= value <= LOG_STD[1],
    f"a number from {LOG_STD[0]:g} to {LOG_STD[1]:g}, or None",
)


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("num_envs", "num_steps", "total_timesteps", "per_rank_batch_size", "frame_stack"), _COUNT),
    **dict.fromkeys(("update_epochs", "test_step_limit", "eval_episodes"), _COUNT),
    **dict.fromkeys(("keep_checkpoints", "recurrent_size"), _COUNT),
    **dict.fromkeys(("learning_rate", "adam_eps", "timeout", "env_timeout", "track_timeout"), _POSITIVE),
    **dict.fromkeys(("max_grad_norm", "clip_coef"), _POSITIVE),
    **dict.fromkeys(("gamma", "gae_lambda"), _UNIT_INTERVAL),
    **dict.fromkeys(("ent_coef", "vf_coef"), _NON_NEGATIVE),
    **dict.fromkeys(("num_threads", "checkpoint_every", "eval_every", "test_episodes"), _COUNT_OR_ZERO),
    **dict.fromkeys(("target_kl", "desired_kl"), (_POSITIVE[0], "a number above 0, or None")),
    **dict.fromkeys(("log_std_min", "log_std_max"), _LOG_STD),
    "seed": (lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295"),
    "hidden_sizes": (lambda widths: all(width >= 1 for width in widths), "whole numbers from 1 up"),
    "stop_at_return": (math.isfinite, "a finite number, or None"),
    "run_dir": (lambda path: path != "", "a folder"),
    "exp_name": (lambda name: re.fullmatch(r"[\w.+-]+", name) is not None, "letters, digits and . + - _"),
    "encoder": (lambda name: name in ENCODERS or ":" in name, f"{', '.join(ENCODERS)} or module:Class"),
    "optimizer": (lambda name: name in OPTIMIZERS or ":" in name, f"{', '.join(OPTIMIZERS)} or module:Class"),
    "env_preset": (lambda name: name == ATARI, ATARI),
    "track_project": (lambda name: re.fullmatch(r"[\w-]+", name) is not None, "letters, digits and - _"),
    "track_group": (lambda name: name.strip() != "", "a name, or None"),
    "track_tags": (lambda tags: all(map(str.strip, tags.split(","))), "names, or None"),
    "obs_keys": (lambda keys: all(keys.split(",")), "a list such as image,direction"),
    "critic_keys": (lambda keys: all(keys.split(",")), "a list such as state,goal.inner"),
}
"""Rules for the values of fields; None is not tested."""


# float32 overflows beyond 3e38
_AT_MOST: dict[str, float] = {
    **dict.fromkeys(("learning_rate", "adam_eps", "timeout", "env_timeout"), 1e30),
    **dict.fromkeys(("max_grad_norm", "clip_coef", "ent_coef", "vf_coef"), 1e30),
    "track_timeout": 1e6,  # a wait has a longest time
    **dict.fromkeys(("num_envs", "num_steps", "test_episodes", "eval_episodes"), 2**30),
    **{"hidden_sizes": 2**16, "recurrent_size": 2**16, "num_threads": 2**12, "frame_stack": 2**10},
}
"""Upper bounds, beyond which libraries crash or no machine has the memory."""


NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "env_wrapper": ((), "module:name"),
    "track": (TRACKERS, f"{NO_TRACKER}, {', '.join(TRACKERS)} or module:Class"),
    "callback": ((), f"{NO_TRACKER} or module:Class"),
}
"""Fields that hold names with commas between them: built-in names, and a description of others."""


def check_values(config: Any) -> None:
    """Check the types and values of a Config, and flags that need or exclude each other.

    Args:
        config: a `Config`; its type has no name here, since `config.py` imports this module.

    Raises:
        ConfigError: a value cannot work; names the first such flag.
    """
    _check_types(config)
    _check_ranges(config)
    _check_names(config)
    info_keys_of(config.info_keys)
    arguments_of(config.optimizer_kwargs, "optimizer_kwargs")
    _check_combinations(config)
    _check_environment(config)
    _check_sequences(config)
    _check_learning_rate(config)
    _check_log_std(config)


def _check_types(config: Any) -> None:
    """Check every value against its annotation."""
    # dataclasses do not: a YAML file or a caller may pass anything
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if name in PATHS and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not has_type(value, kind):
            raise ConfigError(type_error_text(name, value, kind))


def type_error_text(name: str, value: Any, kind: Any) -> str:
    """Return the text of the error about a value that field `name`, of type `kind`, does not take."""
    accepted = f"{accepted_values(name, kind)} is expected"
    if isinstance(value, str) and choices_of(kind):
        return f"{flag(name)} {value}".rstrip() + f": {accepted}"
    if name in (*NAMES, "encoder", "optimizer", "env_id") and not isinstance(
        value, (bool, int, float, dict, type(None))
    ):
        accepted = _named(name, value)
    return f"{flag(name)} {format_given(value)}: {accepted}"


def _named(name: str, value: Any) -> str:
    """Return how to name a class, function or object of the user's own that stands where text is expected."""
    own = names_of(value)
    example = f", such as {own!r}" if own and name != "env_id" else ""
    ways = {
        "env_id": ", such as '__main__:MyEnv-v0', or an id such as 'CartPole-v1', as gymnasium.register gives it",
        "callback": "; objects are for train(config, callbacks=[...])",
        "track": "; objects are for train(config, trackers=[...])",
    }
    return f"'module:Name' is expected{example}{ways.get(name, '')}"


def _check_ranges(config: Any) -> None:
    for name in SCHEDULED:
        require_schedule(name, getattr(config, name))
    for name, (passes, accepted) in _RULES.items():
        value = getattr(config, name)
        # a value that falls to zero is above that in every update
        of_start = schedule_of(value).start if name in SCHEDULED else value
        _require(config, name, value is None or passes(of_start), accepted)
    for name, most in _AT_MOST.items():
        value = getattr(config, name)
        if name in SCHEDULED:
            value = schedule_of(value).start, schedule_of(value).end
        largest = max(value) if isinstance(value, (tuple, list)) else value
        _require(config, name, largest <= most, f"at most {most:g}")


def _check_names(config: Any) -> None:
    """Check the form of names of the user's own parts; `run.resolve` imports them."""
    for name, (known, accepted) in NAMES.items():
        value = getattr(config, name)
        for part in [] if value is None else value.split(","):
            module, _, attribute = part.partition(":")
            if name == "track" and part == "json_lines":
                raise ConfigError("--track json_lines: here it is jsonl")
            if name in ("track", *DROPPED_BY_NONE) and value == NO_TRACKER:
                break
            if part not in known and not (module and attribute):
                raise ConfigError(f"{flag(name)} {part or value}".rstrip() + f": {accepted} is expected")


_BATCHES = {"envpool": "EnvPool", "vector": "a batch"}
"""Backends whose environments cannot be had one by one, as texts name them."""


def _check_combinations(config: Any) -> None:
    """Check flags that need or exclude each other."""
    if config.resume and config.run_dir is None:
        raise ConfigError("--resume: --run-dir is needed too, the folder of the run to go on with")
    if config.restart_envs and config.env_backend != "async":
        raise ConfigError("--restart-envs: --env-backend async is needed too, whose workers can be replaced")
    if config.env_start_method and config.env_backend != "async":
        raise ConfigError(f"--env-start-method {config.env_start_method}: --env-backend async is needed too")
    if config.env_backend in _BATCHES:
        backend = _BATCHES[config.env_backend]
        _require(config, "num_steps", config.num_steps >= 2, f"with {backend} a whole number from 2 up")
        if config.env_wrapper is not None:
            raise ConfigError(f"--env-wrapper: --env-backend sync or async is needed, {backend} cannot be wrapped")
    if config.env_preset and config.env_wrapper:
        raise ConfigError("--env-preset: cannot be had with --env-wrapper, one of the two is expected")
    if config.critic_keys and config.shared_trunk:
        # behind a trunk the value head is linear: it could not relate the critic's own parts to others
        raise ConfigError("--critic-keys: --no-shared-trunk is needed too, a value network with layers of its own")


def _check_environment(config: Any) -> None:
    """Check --env-kwargs and --frame-stack, and what EnvPool and a preset leave no room for."""
    arguments = arguments_of(config.env_kwargs)
    if arguments and config.env_backend == "envpool":
        raise ConfigError("--env-kwargs: --env-backend sync or async is needed, EnvPool's constructors are others")
    if config.env_preset and (own := [name for name in ATARI_ARGUMENTS if name in arguments]):
        given = f"--env-preset {config.env_preset} gives it itself"
        raise ConfigError(f"--env-kwargs {own[0]}: {given}; other arguments are expected")
    if config.env_preset and config.env_backend == "vector":
        raise ConfigError(f"--env-preset {config.env_preset}: --env-backend sync, async or envpool is needed")
    if config.frame_stack > 1 and config.env_backend in _BATCHES:
        needed = "--env-backend sync or async is needed, whose environments can be stacked"
        raise ConfigError(f"--frame-stack {config.frame_stack}: {needed}")
    if config.frame_stack > 1 and config.env_preset:
        reason = f"--env-preset {config.env_preset} stacks four frames already"
        raise ConfigError(f"--frame-stack {config.frame_stack}: {reason}; one of the two is expected")


def _check_sequences(config: Any) -> None:
    """Check that rollouts and minibatches can be cut into whole sequences, with --recurrent."""
    if config.recurrent == "none":
        return
    length, rows = config.sequence_length, config.per_rank_batch_size
    _require(config, "sequence_length", length >= 1, "a whole number from 1 up")
    if config.num_steps % length:
        raise ConfigError(f"--sequence-length {length}: a divisor of --num-steps {config.num_steps} is expected")
    _require(config, "per_rank_batch_size", rows % length == 0, f"a multiple of --sequence-length {length}")
    if config.compile:
        raise ConfigError("--compile: cannot be had with --recurrent")


def _check_learning_rate(config: Any) -> None:
    """Check what --desired-kl needs."""
    kl = config.desired_kl
    if kl is None:
        return
    if config.anneal_lr:
        raise ConfigError(f"--desired-kl {kl:g}: --no-anneal-lr is needed too, the learning rate follows the KL")
    if isinstance(config.learning_rate, str):
        raise ConfigError(f"--learning-rate {config.learning_rate}: with --desired-kl a number is expected")
    least, most = LEARNING_RATES
    in_range = least <= config.learning_rate <= most
    _require(config, "learning_rate", in_range, f"with --desired-kl a number from {least:g} to {most:g}")


def _check_log_std(config: Any) -> None:
    """Check that the bounds of log standard deviations enclose the value at the start."""
    least = LOG_STD[0] if config.log_std_min is None else config.log_std_min
    most = LOG_STD[1] if config.log_std_max is None else config.log_std_max
    _require(config, "log_std_max", least <= most, "at least --log-std-min")
    starts_within = least <= config.log_std_init <= most
    _require(config, "log_std_init", starts_within, f"a number from {least:g} to {most:g}")
