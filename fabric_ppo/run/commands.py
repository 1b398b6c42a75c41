"""Commands that a run prints: the one that goes on with it, and the one that begins another from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric_ppo.process.command import command_with, num_hosts
from fabric_ppo.process.errors import flag
from fabric_ppo.process.signals import signals


def go_on_with(run_dir: Path) -> str:
    """Return the command that goes on with a run: for a shell, or in a notebook for Python."""
    if not signals.is_script:
        return f"train(Config(run_dir={str(run_dir)!r}, resume=True))"
    return command_with(["--run-dir", str(run_dir), "--resume"])


def go_on_text(run_dir: Path) -> str:
    """Return `go on with`, and the command; it names what differs between hosts."""
    hosts = " on each host, with its own number," if signals.is_script and num_hosts() > 1 else ""
    return f"go on{hosts} with {go_on_with(run_dir)}"


def begin_from(run_dir: str, flags: Mapping[str, Any], keeps_policy: bool) -> str:
    """Return the command for a new run with a run's flags, but for some.

    Args:
        run_dir: the folder of the run.
        flags: those that differ, field name -> value as `Config.to_dict` has it.
        keeps_policy: true if the new run is to start with the policy of the other.
    """
    policy = {"init_from": run_dir} if keeps_policy else {}
    if not signals.is_script:
        given = ", ".join(f"{name}={value!r}" for name, value in (policy | dict(flags)).items())
        return f"train(Config(..., {given}))"
    words = ["--config", str(Path(run_dir, "config.yaml"))]
    for name, value in (policy | dict(flags)).items():
        words += flag_words(name, value)
    return command_with(words)


def flag_words(name: str, value: Any) -> list[str]:
    """Return the words that give a flag a value of `Config.to_dict` on the command line."""
    if isinstance(value, bool):
        return [flag(name) if value else f"--no-{flag(name)[2:]}"]
    if isinstance(value, (list, tuple)):
        return [flag(name), *map(str, value)]
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return [f"{flag(name)}={text}"] if text.startswith("-") else [flag(name), text]
