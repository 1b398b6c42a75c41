"""The command line of `python -m fabric_ppo` and `fabric-ppo`: which command is meant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

from fabric_ppo.process.command import running
from fabric_ppo.process.console import end_stdout, open_streams, print_line
from fabric_ppo.process.errors import BAD_INPUT, FAILED, INTERRUPTED, ConfigError, HubError
from fabric_ppo.process.extras import own_version
from fabric_ppo.process.script import shut_down
from fabric_ppo.process.signals import signals
from fabric_ppo.tools.commands import (
    benchmark,
    compare,
    doctor,
    evaluate,
    export,
    imitate,
    plot,
    presets,
    push,
    report,
    runs,
    sweep,
    train,
)
from fabric_ppo.tools.help import HELP, HELP_ALL, Entry, Section, page


class Command(Protocol):
    """Module of a command: its row of the page, and what it does."""

    ENTRY: Entry

    def run(self, args: list[str]) -> int:
        """Run with the words after the command's name; return the exit status."""


_MODULES: tuple[Command, ...] = (
    *(train, evaluate, imitate, runs, compare, plot, report),
    *(export, push, benchmark, sweep, presets, doctor),
)
COMMANDS = {each.ENTRY.names.split()[0]: each for each in _MODULES}
"""Name -> module; they are on the page in this order."""
VERSION = "--version"


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; `args` are by default those of the process."""
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in (*HELP, HELP_ALL):
        print(_commands_page())
        return 0 if args else BAD_INPUT
    if args[0] == VERSION:
        print(f"fabric-ppo {own_version()}")
        return 0
    try:
        if args[0] not in COMMANDS:
            raise ConfigError(f"{args[0]}: unknown command; one of {', '.join(COMMANDS)} is expected")
        token = running.set(args[0])
        try:
            return COMMANDS[args[0]].run(args[1:])
        finally:
            running.reset(token)
    except ConfigError as error:
        print_line(f"error: {error}", sys.stderr)
        return BAD_INPUT
    except HubError as error:
        print_line(f"error: {error}", sys.stderr)
        return FAILED


def console() -> NoReturn:
    """Run the console script `fabric-ppo`: a process of its own."""
    open_streams()
    if sys.argv[1:2] == ["train"]:
        signals.install()  # as its script does: a signal ends both alike
    try:
        status = main()
    except KeyboardInterrupt:
        print_line("interrupted", sys.stderr)
        status = INTERRUPTED
    # an environment's code may print as the process ends: that is none of the result
    end_stdout()
    shut_down(status)


def _commands_page() -> str:
    """Return the page of `--help`."""
    about = "Train agents with PPO, and look at what they have learned."
    rows = [command.ENTRY for command in COMMANDS.values()]
    return page(
        "fabric-ppo COMMAND",
        about,
        [Section("Commands", rows)],
        f"COMMAND --help shows its flags; {VERSION} prints the version.",
    )
