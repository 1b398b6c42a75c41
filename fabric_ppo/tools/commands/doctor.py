"""`doctor`: the machine, the packages that training needs, and what optional parts lack."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import FAILED
from fabric_ppo.process.extras import own_version
from fabric_ppo.tools.command_parser import CommandParser
from fabric_ppo.tools.help import Entry
from fabric_ppo.tools.tables import print_json, printable

if TYPE_CHECKING:
    from fabric_ppo.tools.doctor import Diagnosis, Row

ENTRY = Entry("doctor", "Check the machine and the packages, and say what is missing.")
"""Row of this command on the page of all."""
_WIDTH, _NAMES = 80, 18


def run(args: list[str]) -> int:
    """Print what was found; return 1 where nothing can be trained."""
    parser = CommandParser("fabric-ppo doctor")
    parser.description = (
        "Check the machine and the packages: what training needs, and what each optional part lacks, with the "
        "command that installs it. The exit status is 0 where training works, else 1."
    )
    parser.add_argument("--imports", action="store_true", help="Import optional packages, too, which takes longer.")
    parser.add_argument("--json", action="store_true", help="Print an object, with numbers in it.")
    given = parser.parse_args(args)
    from fabric_ppo.tools.doctor import examine

    diagnosis = examine(given.imports)
    if given.json:
        print_json(_to_dict(diagnosis))
    else:
        _print(diagnosis)
    return FAILED if diagnosis.problems else 0


def _to_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the rows as JSON has them."""

    def objects(rows: Mapping[str, Row]) -> dict[str, Any]:
        return {
            name: {"state": row.state, "text": row.text, "command": row.command or None, **row.facts}
            for name, row in rows.items()
        }

    return {
        "fabric_ppo": own_version(),
        "works": not diagnosis.problems,
        "problems": diagnosis.problems,
        "machine": objects(diagnosis.machine),
        "packages": objects(diagnosis.packages),
        "features": objects(diagnosis.features),
    }


def _print(diagnosis: Diagnosis) -> None:
    """Print a table for each group of rows, and whether training works."""
    print_line(f"fabric-ppo {own_version()}", sys.stdout)
    for title, rows in (
        ("Machine", diagnosis.machine),
        ("Packages that training needs", diagnosis.packages),
        ("Optional", diagnosis.features),
    ):
        print_line(f"\n{title}:", sys.stdout)
        for name, row in rows.items():
            print_line(_lines(name, row), sys.stdout)
    print_line("", sys.stdout)
    for problem in diagnosis.problems:
        print_line(textwrap.fill(printable(f"problem: {problem}"), _WIDTH, subsequent_indent="  "), sys.stdout)
    print_line("training does not work here" if diagnosis.problems else "training works", sys.stdout)


def _lines(name: str, row: Row) -> str:
    """Return a row in lines of at most 80 columns: name, state, text, and the command in one piece."""
    head = f"  {name:<{_NAMES}}{row.state:<8} "
    indent = " " * len(head)
    text = textwrap.fill(printable(row.text), _WIDTH, initial_indent=head, subsequent_indent=indent)
    # a command is not cut at a line's end: it is to be pasted
    return f"{text}\n{indent}{row.command}" if row.command else text
