"""Commands that a run prints: to resume it, to begin another from it, to test its agent again."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fabric_ppo.config import Config
from fabric_ppo.process.command import command_with, num_hosts, package_command
from fabric_ppo.process.errors import flag
from fabric_ppo.process.signals import signals
from fabric_ppo.run.code import own_folders


def go_on_with(run_dir: Path) -> str:
    """Return the command that resumes a run: for a shell, or in a notebook for Python."""
    if not signals.is_script:
        return _python("Config, train", f"train(Config(run_dir={str(run_dir)!r}, resume=True))")
    return command_with(["--run-dir", str(run_dir), "--resume"])


def go_on_text(run_dir: Path) -> str:
    """Return `go on with`, and the command; it names the arguments that differ between hosts."""
    hosts = " on each host, with its own number," if signals.is_script and num_hosts() > 1 else ""
    return f"go on{hosts} with {go_on_with(run_dir)}"


def _python(names: str, call: str) -> str:
    """Return Python code that runs alone: it imports the public names of this package for the call."""
    return f"from fabric_ppo import {names}; {call}"


def play_again(run_dir: Path, config: Config, named: Collection[str]) -> str:
    """Return the command that tests a run's agent: for a shell, whole, in any folder.

    It is for Python if only this program has the environment, such as one defined in a notebook.

    Args:
        run_dir: the run's folder.
        config: its flags.
        named: the user's own modules in the names of the environment's id and its wrappers.
    """
    folders = own_folders(config)
    is_registered_here = not signals.is_script and not named and bool(folders)
    if is_registered_here or "__main__" in folders:
        own = ", own_code=True" if named or ":" in config.encoder else ""
        return _python("evaluate", f"evaluate({str(run_dir)!r}{own})")
    needed = sorted({folder for name, folder in folders.items() if folder})
    words = ["evaluate", str(run_dir)]
    if len(needed) == 1:
        words += ["--code-dir", needed[0]]
    elif needed or named or ":" in config.encoder:
        words.append("--own-code")
    return package_command(words, needed if len(needed) > 1 else ())


def begin_from(config: Config, flags: Mapping[str, Any], keeps_policy: bool) -> str:
    """Return the command for a new run with the flags of another run, except for some.

    Args:
        config: the flags of the new run, except for its folder, which is that of the other.
        flags: flags that differ, field name -> value as in `Config.to_dict`.
        keeps_policy: true if the new run starts with the policy of the other.
    """
    policy = {"init_from": os.fspath(config.run_dir or "")} if keeps_policy else {}
    if not signals.is_script:
        # all flags: one that goes back to its default would be that of a file
        new = dataclasses.replace(config, run_dir=None, resume=False, config=None, quiet=False)
        new = dataclasses.replace(new, init_from=config.run_dir) if keeps_policy else new
        return _python(f"{type(config).__name__}, train", f"train({new!r})")
    words = ["--config", str(Path(config.run_dir or "", "config.yaml"))]
    for name, value in (policy | dict(flags)).items():
        words += flag_words(name, value)
    return command_with(words)


def flag_words(name: str, value: Any) -> list[str]:
    """Return the words that set a flag to a value of `Config.to_dict` on the command line."""
    if isinstance(value, bool):
        return [flag(name) if value else f"--no-{flag(name)[2:]}"]
    if isinstance(value, (list, tuple)):
        return [flag(name), *map(str, value)]
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return [f"{flag(name)}={text}"] if text.startswith("-") else [flag(name), text]
