"""Tables: for people on a terminal of any width, as plain columns for other programs, and as JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric_ppo.process.console import is_terminal, print_line

_GAP = 2
"""Blanks between columns."""
_NARROWEST = 16
"""Least width of a column that wraps."""


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Attributes:
        title: text above it.
        is_number: True for a column that is flush right.
        wraps: True for a column whose texts are cut into lines where the terminal is narrow.
        rank: columns with the greatest rank are left out first where the terminal is narrow; those
            of rank 0 never are.
    """

    title: str
    is_number: bool = False
    wraps: bool = False
    rank: int = 0


def prints_for_people() -> bool:
    """Return True if stdout is a terminal: other programs get plain columns."""
    return is_terminal(sys.stdout)


def print_json(values: Any) -> None:
    """Print values as JSON, and nothing else."""
    print_line(json.dumps(values, indent=2, allow_nan=False), sys.stdout)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], styles: dict[str, str] | None = None) -> None:
    """Print a table on stdout; an empty cell is a minus sign.

    On a terminal it is as wide as that, with colours. Elsewhere it has a line for each row and one
    for the titles, columns with blanks between them, and no blanks within.

    Args:
        columns: the columns.
        rows: texts, one for each column.
        styles: style of rich for the cells with a text, text -> style.
    """
    texts = [[printable(cell) or "-" for cell in row] for row in rows]
    if prints_for_people():
        _print_for_people(columns, texts, styles or {})
    else:
        _print_plain([[column.title for column in columns], *texts], [column.is_number for column in columns])


def printable(text: str) -> str:
    """Return a text in one line; what is not printable, as in a folder's name, is escaped."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _print_plain(rows: list[list[str]], is_number: Sequence[bool]) -> None:
    """Print rows for other programs: a blank within a cell becomes `_`."""
    rows = [[re.sub(r"\s", "_", cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        print_line((" " * _GAP).join(cells).rstrip(), sys.stdout)


def _print_for_people(columns: Sequence[Column], rows: list[list[str]], styles: dict[str, str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    shown = fitting(columns, rows, console.width)
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold"
    )
    for i in shown:
        column = columns[i]
        right: Any = "right" if column.is_number else "left"
        least = _NARROWEST if column.wraps else None
        table.add_column(Text(column.title), justify=right, no_wrap=not column.wraps, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*(Text(row[i], styles.get(row[i], "")) for i in shown))
    console.print(table)


def room_for(columns: Sequence[Column], rows: Sequence[Sequence[str]], start: int) -> int:
    """Return how many columns from `start` on fit beside the first one: at least one, elsewhere all.

    Args:
        columns, rows: as `print_table` takes them.
        start: index of the first of them.
    """
    if not prints_for_people():
        return len(columns) - start
    from rich.console import Console

    def longest_word(i: int) -> int:
        texts = [columns[i].title, *(row[i] for row in rows)]
        return max((len(word) for text in texts for word in text.split()), default=1)

    def width(i: int) -> int:
        return max(_NARROWEST, longest_word(i)) + _GAP

    left = Console(file=sys.stdout).width - max(len(row[0]) for row in rows) - _GAP
    count = 0
    while start + count < len(columns) and left >= width(start + count):
        left -= width(start + count)
        count += 1
    return max(1, count)


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the columns that a terminal of `width` has room for, as indices in their order."""
    widths = [max([len(column.title), *(len(row[i]) for row in rows)]) for i, column in enumerate(columns)]
    # two lines are read as well as one, more are not
    widths = [
        min(width, max(_NARROWEST, math.ceil(width / 2))) if column.wraps else width
        for width, column in zip(widths, columns, strict=True)
    ]
    shown = list(range(len(columns)))
    while sum(widths[i] + _GAP for i in shown) > width + _GAP:
        last = max(shown, key=lambda i: (columns[i].rank, i))
        if columns[last].rank == 0:
            break
        shown.remove(last)
    return shown
