"""Parser of the commands' own flags: errors in one line, help in the layout of `help.py`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.command_hints import command_hint
from fabric_ppo.tools.help import HELP, Entry, Section, page
from fabric_ppo.tools.whole_numbers import whole_number


def count(text: str) -> int:
    """Return the whole number that a flag's value stands for; for `add_argument(type=count)`."""
    try:
        return whole_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: a whole number is expected") from None


def names(text: str) -> list[str]:
    """Return the names in a flag's value, with commas between them; for `add_argument`."""
    found = [each.strip() for each in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text or repr(text)}: names with commas between them are expected")
    return found


class CommandParser(argparse.ArgumentParser):
    """ArgumentParser that raises a ConfigError, so that its errors are one line."""

    def __init__(self, prog: str, add_help: bool = True) -> None:
        """Take the command that the usage begins with; flags cannot be abbreviated."""
        super().__init__(prog=prog, allow_abbrev=False, add_help=add_help)

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """Return what the words give; raise a ConfigError with a hint for an unknown flag."""
        self._require_known_flags(args)
        given, rest = self.parse_known_args(args)
        if rest:
            one = " and ".join(f"one {each.metavar}" for each in self._actions if not each.option_strings)
            raise ConfigError(f"{' '.join(rest)}: {one or 'a flag'} is expected, and no more")
        return given

    def _require_known_flags(self, words: Sequence[str]) -> None:
        """Raise a ConfigError for the first flag that is none of this command."""
        known = [name for action in self._actions for name in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                return
            # a minus, and a letter: numbers are values
            if re.match("--?[A-Za-z]", name) and name not in known:
                raise ConfigError(f"{name}: unknown flag; {command_hint(name, known, f'{self.prog} --help')}")

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError."""
        # argparse writes "argument --seeds: 1.5: ..."
        raise ConfigError(re.sub(r"^argument (--[\w-]+): ", r"\1 ", message))

    def format_help(self) -> str:
        """Return the page of the command."""
        arguments = [action for action in self._actions if not action.option_strings]
        forms = {"+": "{} ...", "?": "[{}]", "*": "[{} ...]"}
        words = [forms.get(str(action.nargs), "{}").format(action.metavar) for action in arguments]
        words += [_names(action) for action in self._flags() if action.required]
        if not all(action.required for action in self._flags()):
            words.append("[FLAGS]")
        rows = [Entry(str(action.metavar), action.help or "") for action in arguments]
        flags = [*self.flag_entries(), Entry(", ".join(HELP), "Show this page.")]
        sections = [*([Section("Arguments", rows)] if rows else []), Section("Flags", flags)]
        return page(" ".join([self.prog, *words]), self.description or "", sections) + "\n"

    def flag_entries(self) -> list[Entry]:
        """Return the rows of all flags but `--help`."""
        return [Entry(_names(action), action.help or "") for action in self._flags()]

    def _flags(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.option_strings and action.dest != "help"]


def _names(action: argparse.Action) -> str:
    """Return a flag with the stand-in for its value."""
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    choices = action.choices and "{" + ",".join(map(str, action.choices)) + "}"
    return f"{names} {choices or action.metavar or ('N' if action.type is count else 'NAME')}"
