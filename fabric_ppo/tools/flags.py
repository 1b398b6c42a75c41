"""Parsing of the command line and of YAML files into a Config.

This module imports nothing heavy, so that `--help` and a wrong flag are answered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fabric_ppo.config import SCRIPT_CONFIGS, Config, script_file
from fabric_ppo.config_arguments import json_text
from fabric_ppo.config_values import accepted_values, field_types, format_value, has_type, takes_float
from fabric_ppo.process.console import open_streams, print_from_rank_zero, print_line
from fabric_ppo.process.errors import ConfigError, first_line, flag
from fabric_ppo.process.launch import die_with_launcher, read_launch
from fabric_ppo.process.signals import signals
from fabric_ppo.run.fabric_flags import require_fabric_variables
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools.locate import config_path

C = TypeVar("C", bound=Config)


def load_yaml(path: str, config_type: type[Config]) -> dict[str, Any]:
    """Read a YAML file of flags for `config_type`; flags of other scripts are printed and ignored.

    Returns:
        Field name -> value, with the field's type.

    Raises:
        ConfigError: the file cannot be read, or has a key that no script has.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML raises five types of errors for a bad `!!int` alone
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ConfigError(f"--config {path}: cannot be read ({reason})") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"--config {path}: a YAML mapping of flags to values is expected")
    values = {key.replace("-", "_"): value for key, value in values.items()}
    own = {field.name for field in dataclasses.fields(config_type)} - {"config"}
    every = {field.name for kind in SCRIPT_CONFIGS.values() for field in dataclasses.fields(kind)} - {"config"}
    for key in values.keys() - every:
        nearest = difflib.get_close_matches(key, every, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "see --help for the flags"
        raise ConfigError(f"--config {path}: unknown key {key}; {hint}")
    if foreign := sorted(values.keys() - own):
        print_from_rank_zero(f"--config {path}: ignoring {', '.join(map(flag, foreign))} of another script")
    kinds = field_types(config_type)
    return {key: _from_yaml(key, value, kinds[key]) for key, value in values.items() if key in own}


def _from_yaml(name: str, value: Any, kind: Any) -> Any:
    """Return the value of a flag in a YAML file, converted to the flag's type.

    Raises:
        ConfigError: it has another type than its flag.
    """
    # YAML 1.1 reads 3e-4, which has no point, as text, and has lists, but no tuples
    if isinstance(value, list):
        value = tuple(value)
    elif takes_float(kind) and type(value) in (str, int):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if not has_type(value, kind):
        raise ConfigError(f"{flag(name)} {format_value(value)}".rstrip() + f": {accepted_values(kind)} is expected")
    return (json_text(value) or None) if isinstance(value, dict) else value


def parse_args(config_type: type[C], args: Sequence[str] | None = None) -> C:
    """Parse a script's command line into a Config that fits the launch and this machine.

    Without `args` it parses the command line of this process, which from then on handles signals,
    and ends when its launcher does.

    Raises:
        SystemExit: with status 2, after one line from rank 0, if a flag cannot work; with status 0
            after `--help`.
    """
    if args is None:
        open_streams()
        die_with_launcher()
        signals.install()
    try:
        launch = read_launch()
    except ConfigError as error:
        # the rank is not known, so each process prints it
        print_line(f"error: {error}", sys.stderr)
        raise SystemExit(2) from None
    try:
        config = parse_flags(config_type, sys.argv[1:] if args is None else args)
        config = resolve(config, launch.world_size, launch.local_world_size)
        require_fabric_variables(config)
        return config
    except ConfigError as error:
        print_from_rank_zero(f"error: {error}")
        raise SystemExit(2) from None


def parse_flags(config_type: type[C], args: Sequence[str], prog: str | None = None) -> C:
    """Parse flags into a Config that is not yet resolved.

    Raises:
        ConfigError: an unknown flag, a value of the wrong type, or values that `Config` refuses.
        SystemExit: `--help` is among the flags.
    """
    import tyro

    given = _given_flags(config_type, args)
    path = config_path(name) if (name := (given.get("config") or [""])[0]) else ""
    # tyro hides a ConfigError that is raised while it builds the Config: let it build one without
    # checks. Of a mapping it would make a flag for each key
    fields = {"__doc__": config_type.__doc__, "__post_init__": _accept, "__annotations__": {"env_kwargs": "str | None"}}
    unchecked = type(config_type.__name__, (config_type,), fields)
    default = unchecked(**(load_yaml(path, config_type) if path else {}))
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            values = tyro.cli(unchecked, args=list(args), default=default, prog=prog)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(config_type, given, output.getvalue())) from None
    return config_type(**vars(values))


def _accept(config: Config) -> None:
    """Stand in for `Config.__post_init__`."""


def _given_flags(config_type: type[Config], args: Sequence[str]) -> dict[str, list[str]]:
    """Return field name -> words of its value on the command line.

    Raises:
        ConfigError: a word belongs to no flag.
    """
    kinds = field_types(config_type)
    known = {flag(name): name for name in kinds}
    known |= {"--no-" + name.replace("_", "-"): name for name, kind in kinds.items() if kind is bool}
    given: dict[str, list[str]] = {}
    current, room = "", 0
    for word in args:
        if word in ("-h", "--help"):
            continue
        if not word.startswith("--"):
            if room == 0:
                raise ConfigError(
                    f"{current} {word}: {current + ' takes no more' if current else 'a flag is expected'}".lstrip()
                )
            given[known[current]].append(word)
            room -= 1
            continue
        current, _, value = word.partition("=")
        current = current.replace("_", "-")
        if current not in known:
            raise ConfigError(f"{current}: unknown flag; {_hint(current, known)}")
        kind = kinds[known[current]]
        if kind is bool and value:
            raise ConfigError(f"{word}: {flag(known[current])} or --no-{flag(known[current])[2:]} is expected")
        room = 0 if kind is bool or value else len(args) if kind == tuple[int, ...] else 1
        given[known[current]] = [value] if value else []
    return given


def _hint(word: str, known: Collection[str]) -> str:
    """Return a hint for the error about a flag that a script does not have."""
    if owners := [kind for kind in SCRIPT_CONFIGS.values() if word in map(flag, field_types(kind))]:
        hint = "; fabric run takes --accelerator=cuda" if word == "--cuda" else ""
        return f"it is one of {' and '.join(map(script_file, owners))}{hint}"
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {nearest[0]}?" if nearest else "see --help"


def _one_line(config_type: type[Config], given: dict[str, list[str]], box: str) -> str:
    """Return tyro's error, which is printed in a box, as one line: flag, value, expected type."""
    kinds = field_types(config_type)
    for found in re.findall(r"--[\w-]+", box):
        name = found.removeprefix("--").removeprefix("no-").replace("-", "_")
        if name in given:
            accepted = f"no value, {found} or --no-{found[2:]}" if kinds[name] is bool else accepted_values(kinds[name])
            return " ".join([found, *given[name]]) + f": {accepted} is expected"
    return " ".join(re.sub(r"[^\x20-\x7e]+", " ", box).split()) or "the command line cannot be read; see --help"
