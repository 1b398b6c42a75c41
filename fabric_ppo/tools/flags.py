"""Parsing of the command line and of YAML files into a Config.

This module imports nothing heavy, so that `--help` and a wrong flag are answered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from fabric_ppo.config import SCRIPT_CONFIGS, Config, script_file
from fabric_ppo.config_arguments import ARGUMENT_FIELDS, json_text
from fabric_ppo.config_names import EDIT
from fabric_ppo.config_values import accepted_values, field_types, format_value, has_type, takes_float, takes_int
from fabric_ppo.process.console import is_rank_zero, open_streams, print_from_rank_zero, print_line
from fabric_ppo.process.errors import ConfigError, first_line, flag
from fabric_ppo.process.launch import die_with_launcher, read_launch
from fabric_ppo.process.signals import signals
from fabric_ppo.run.fabric_flags import require_fabric_variables
from fabric_ppo.run.folder import CONFIG_FILE, IMITATION, started_with
from fabric_ppo.run.near_runs import require_run_or_flags
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools.flag_hints import flag_hint
from fabric_ppo.tools.help import HELP, HELP_ALL, Section, default_usage, script_page
from fabric_ppo.tools.locate import config_path
from fabric_ppo.tools.whole_numbers import whole_number
from fabric_ppo.tools.words import REPEATABLE, flag_of, joined, numbers_in, plain_numbers, spread

C = TypeVar("C", bound=Config)

_RENAMED = {"callbacks": "callback", "trackers": "track"}
"""Fields by their names in the folders of older runs."""
_OF_RUN = "--resume:"
"""Origin of flags that come from the folder of a run."""


def load_yaml(path: str, config_type: type[Config], of: str = "--config") -> dict[str, Any]:
    """Read a YAML file of flags for `config_type`; flags of other scripts are printed and ignored.

    Args:
        path: of the file.
        config_type: class of the script's flags.
        of: the flag that leads to the file, for the errors' text.

    Returns:
        Field name -> value, with the field's type.

    Raises:
        ConfigError: the file cannot be read, or has a key that no script has.
    """
    return typed_flags(read_mapping(path, of), path, config_type, of)


def read_mapping(path: str, of: str = "--config") -> dict[str, Any]:
    """Read a YAML file whose keys are text; raises as `load_yaml`."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML raises five types of errors for a bad `!!int` alone
        reason = error.strerror if isinstance(error, OSError) else _yaml_reason(error)
        raise ConfigError(f"{of} {path}: cannot be read ({reason})") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{of} {path}: a YAML mapping of flags to values is expected")
    return values


def typed_flags(values: dict[str, Any], path: str, config_type: type[Config], of: str = "--config") -> dict[str, Any]:
    """Return the flags of a mapping that was read from the file `path`; see `load_yaml`."""
    own = {field.name for field in dataclasses.fields(config_type)} - {"config"}
    if of == _OF_RUN:
        values = {_RENAMED.get(key, key): value for key, value in values.items()}
        if isinstance(values.get("track"), str):
            values["track"] = values["track"].replace("json_lines", "jsonl")
    every = {field.name for kind in SCRIPT_CONFIGS.values() for field in dataclasses.fields(kind)} - {"config"}
    for key, value in values.items():
        if key.replace("-", "_") not in every:
            hint = flag_hint(flag(key), [*map(flag, every)])
            hint = "flags at the top level of the file are expected" if isinstance(value, dict) else hint
            raise ConfigError(f"{of} {path}: unknown key {key}; {hint}")
    values = {key.replace("-", "_"): value for key, value in values.items()}
    if foreign := sorted(values.keys() - own):
        print_from_rank_zero(f"{of} {path}: ignoring {', '.join(map(flag, foreign))} of another script")
    kinds = field_types(config_type)
    return {key: from_yaml(key, value, kinds[key]) for key, value in values.items() if key in own}


def _yaml_reason(error: Exception) -> str:
    """Return what is wrong with a YAML file, with its line where PyYAML knows that."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"{first_line(error)}; a YAML file of flags is expected"
    return f"line {mark.line + 1}: {problem or first_line(error)}; a YAML file of flags is expected"


def flags_of_run(run_dir: str, config_type: type[Config]) -> dict[str, Any]:
    """Return the flags of the run in a folder, which `--resume` goes on with; empty for no run.

    Raises:
        ConfigError: the run is another script's, or its `config.yaml` cannot be read.
    """
    path = Path(run_dir, CONFIG_FILE)
    if not os.path.exists(path):
        return {}
    script, own = started_with(run_dir)[0], script_file(config_type)
    if script == IMITATION:
        train = f"--init-from {run_dir} with another --run-dir is expected"
        raise ConfigError(f"--resume --run-dir {run_dir}: holds a policy that imitates demonstrations; {train}")
    if script not in ("", own):
        raise ConfigError(f"--resume --run-dir {run_dir}: holds a run of {script}, this is {own}; {script} is expected")
    return load_yaml(str(path), config_type, _OF_RUN)


def resumed_folder(args: Sequence[str], from_file: Mapping[str, Any]) -> str | None:
    """Return `--run-dir` where `--resume` is given, on the command line or in a file; else None."""
    folder, resumes = from_file.get("run_dir"), from_file.get("resume", False)
    for word, following in zip_longest(args, args[1:], fillvalue=""):
        name, _, value = word.partition("=")
        if flag_of(word) == "--run-dir":
            folder = value if name != word else following
        resumes = {"--resume": True, "--no-resume": False}.get(flag_of(word), resumes)
    return folder if resumes else None


def from_yaml(name: str, value: Any, kind: Any) -> Any:
    """Return the value of a flag in a YAML file, converted to the flag's type.

    Raises:
        ConfigError: it has another type than its flag.
    """
    # YAML 1.1 reads 3e-4, which has no point, as text, and has lists, but no tuples
    if isinstance(value, list) and name in REPEATABLE and all(isinstance(each, str) for each in value):
        value = ",".join(value)
    elif isinstance(value, list):
        value = tuple(map(_whole, value)) if takes_int(kind) else tuple(value)
    elif kind == tuple[int, ...] and isinstance(value, str):
        value = tuple(map(_whole, numbers_in(value)))
    elif takes_int(kind):
        value = _whole(value)
    elif takes_float(kind) and type(value) in (str, int):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if not has_type(value, kind):
        expected = f"{accepted_values(name, kind)} is expected{_value_hint(name, [value])}"
        raise ConfigError(f"{flag(name)} {format_value(value)}".rstrip() + f": {expected}")
    return (json_text(value, name) or None) if isinstance(value, dict) else value


def _whole(value: Any) -> Any:
    """Return the whole number that 1M (text in YAML) or 1.0e+6 (a float) stands for, else `value`."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return whole_number(value)
    return value


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
        # the script may be a copy, in a folder and under a name of one's own
        prog = f"python {shlex.quote(sys.argv[0])}" if args is None else ""
        config = parse_flags(config_type, sys.argv[1:] if args is None else args, prog)
        config = resolve(config, launch.world_size, launch.local_world_size)
        require_fabric_variables(config)
        if args is None:
            gc.disable()  # until `run_script`: the imports in between leave much, and nothing to collect
        return config
    except ConfigError as error:
        print_from_rank_zero(f"error: {error}")
        raise SystemExit(2) from None


def parse_flags(config_type: type[C], args: Sequence[str], prog: str = "", launcher: Sequence[Section] = ()) -> C:
    """Parse flags into a Config that is not yet resolved.

    Args:
        config_type: class of the script's flags.
        args: words of the command line.
        prog: command that the usage in the help begins with; by default the script's.
        launcher: sections of the help with the launcher's flags.

    Raises:
        ConfigError: an unknown flag, a value of the wrong type, or values that `Config` refuses.
        SystemExit: `--help` or `--help-all` is among the flags.
    """
    args = spread(config_type, joined(args))
    given = _given_flags(config_type, args)
    path = config_path(name) if (name := (given.get("config") or [""])[0]) else ""
    from_file = load_yaml(path, config_type) if path else {}
    said = {*given, *from_file}
    if (run_dir := resumed_folder(args, from_file)) is not None:
        from_file = flags_of_run(run_dir, config_type) | from_file
    if asked := [word for word in map(flag_of, args) if word in (*HELP, HELP_ALL)]:
        if is_rank_zero():
            prog = prog or default_usage(config_type)
            print(script_page(config_type(**from_file), prog, HELP_ALL in asked, launcher))
        raise SystemExit(0)
    config = _build(config_type, args, given, from_file)
    if config.resume:
        require_run_or_flags(str(config.run_dir), said, config.log_dir)
    return config


def names_given(config_type: type[Config], args: Sequence[str]) -> set[str]:
    """Return the fields that a command line, which `parse_flags` has read, gives itself or in its `--config` file."""
    given = _given_flags(config_type, spread(config_type, joined(args)))
    path = config_path(name) if (name := (given.get("config") or [""])[0]) else ""
    of_file = read_mapping(path) if path else {}
    return {*given, *(key.replace("-", "_") for key in of_file)}


def _build(config_type: type[C], args: Sequence[str], given: dict[str, list[str]], from_file: dict[str, Any]) -> C:
    """Build a Config from the values of a file and the words of the command line.

    Raises:
        ConfigError: a value cannot work.
    """
    import tyro

    # tyro hides a ConfigError that is raised while it builds the Config: let it build one without
    # checks. Of a mapping it would make a flag for each key
    fields = {
        "__doc__": config_type.__doc__,
        "__post_init__": _accept,
        "__annotations__": dict.fromkeys(ARGUMENT_FIELDS, "str | None"),
    }
    unchecked = type(config_type.__name__, (config_type,), fields)
    default = unchecked(**from_file)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            values = tyro.cli(unchecked, args=plain_numbers(config_type, args), default=default)
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
    for place, word in enumerate(args):
        if flag_of(word) in (*HELP, HELP_ALL):
            continue
        if not word.startswith("--"):
            if room == 0:
                raise ConfigError(_no_room(current, known.get(current, ""), word, kinds))
            given[known[current]].append(word)
            room -= 1
            continue
        current, value = flag_of(word), word.partition("=")[2]
        if current not in known:
            raise ConfigError(_unknown_flags(args[place:], known))
        kind = kinds[known[current]]
        if kind is bool and value:
            raise ConfigError(f"{word}: {flag(known[current])} or --no-{flag(known[current])[2:]} is expected")
        room = 0 if kind is bool or value else len(args) if kind == tuple[int, ...] else 1
        given[known[current]] = [value] if value else []
    return given


def _unknown_flags(words: Sequence[str], known: Collection[str]) -> str:
    """Return the text of the error about all unknown flags of `words`, of which the first is one."""
    flags = dict.fromkeys(flag_of(word) for word in words if word.startswith("--"))
    unknown = [each for each in flags if each not in (*known, *HELP, HELP_ALL)]
    hints = [f"{each}: {'unknown flag; ' * (each == unknown[0])}{flag_hint(each, known)}" for each in unknown]
    return "; ".join(hints)


def _no_room(current: str, name: str, word: str, kinds: Mapping[str, Any]) -> str:
    """Return the text of the error about a word after a flag, the field `name`, that takes no more."""
    if not current:
        return f"{word}: a flag is expected"
    if kinds[name] is bool:
        return f"{current} {word}: {flag(name)} or --no-{flag(name)[2:]} is expected"
    return f"{current} {word}: {current} takes no more"


def _value_hint(name: str, values: Sequence[Any]) -> str:
    """Return how a value is had that a flag does not take, for the end of the error; nothing where unknown."""
    if name == "activation_function" and values:
        return f"; another one is an edit of fabric_ppo/agents/mlp.py, see {EDIT}"
    return ""


def _one_line(config_type: type[Config], given: dict[str, list[str]], box: str) -> str:
    """Return tyro's error, which is printed in a box, as one line: flag, value, expected type."""
    kinds = field_types(config_type)
    for found in re.findall(r"--[\w-]+", box):
        name = found.removeprefix("--").removeprefix("no-").replace("-", "_")
        if name in given:
            accepted = (
                f"no value, {found} or --no-{found[2:]}" if kinds[name] is bool else accepted_values(name, kinds[name])
            )
            return " ".join([found, *given[name]]) + f": {accepted} is expected{_value_hint(name, given[name])}"
    return " ".join(re.sub(r"[^\x20-\x7e]+", " ", box).split()) or "the command line cannot be read; see --help"
