"""`compare`: settings, scores, time and speed of runs, side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fabric_ppo.process.console import print_line
from fabric_ppo.tools.command_parser import CommandParser, names
from fabric_ppo.tools.help import Entry

if TYPE_CHECKING:
    from fabric_ppo.tools.compare import Comparison, Estimate

ENTRY = Entry("compare RUN_DIR ...", "Show what differs between runs: settings, scores, time, speed.")
"""Row of this command on the page of all."""
_ABOUT = (
    "Show settings that differ, scores with 95 % intervals, time and speed of runs side by side. Runs that differ "
    "only by seed, and by flags that only look at a run, are one column."
)


def run(args: list[str]) -> int:
    """Print a table with a column for each group of runs."""
    parser = CommandParser("fabric-ppo compare")
    parser.description = _ABOUT
    parser.add_argument(
        "run_dirs", metavar="RUN_DIR", nargs="+", help="Folders of runs, folders with runs in them, or patterns."
    )
    parser.add_argument(
        "--group-by",
        type=names,
        metavar="FLAG[,FLAG]",
        help="Have a column for each value of these flags. (default: all flags but the seed)",
    )
    baseline = "Compare with this group, by its name, or a folder of its runs. (default: that of the smallest values)"
    parser.add_argument("--baseline", metavar="GROUP", help=baseline)
    parser.add_argument("--json", action="store_true", help="Print an object, with more in it.")
    given = parser.parse_args(args)
    from fabric_ppo.tools.compare import compare, notes
    from fabric_ppo.tools.find_runs import named_runs
    from fabric_ppo.tools.run_groups import baseline_first, differing_flags, groups
    from fabric_ppo.tools.tables import print_json

    runs = named_runs(given.run_dirs)
    found = groups(runs, given.group_by)
    if given.baseline is not None:
        found = baseline_first(found, given.baseline)
    compared = compare(found, differing_flags(runs))
    remarks = list(notes(compared))
    if given.json:
        print_json({"groups": [each.to_dict() for each in compared], "notes": remarks})
        return 0
    _print(compared)
    for line in remarks:
        print_line(f"note: {line}", sys.stderr)
    return 0


def _print(compared: Sequence[Comparison]) -> None:
    """Print the table, in parts where the terminal has no room for all groups."""
    from fabric_ppo.tools.tables import Column, print_table, prints_for_people, room_for

    columns = [Column("group"), *(Column(each.label, is_number=True, wraps=True) for each in compared)]
    rows = _rows(compared, for_people=prints_for_people())
    done = 1
    while done < len(columns):
        count = room_for(columns, rows, done)
        part = [0, *range(done, done + count)]
        print_table([columns[i] for i in part], [[row[i] for i in part] for row in rows])
        done += count
        if done < len(columns):
            print_line("", sys.stdout)


def _rows(compared: Sequence[Comparison], for_people: bool) -> list[list[str]]:
    """Return the rows of the table, the first cell of each its name."""
    from fabric_ppo.run.result import RETURN_WINDOW
    from fabric_ppo.tools.compare import few_episodes
    from fabric_ppo.tools.run_groups import format_setting

    comma, blank = (",", " ") if for_people else ("", "")

    def row(name: str, text: Callable[[Comparison], str]) -> list[str]:
        return [name, *map(text, compared)]

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:{comma}.0f}"

    def estimate(value: Estimate | None) -> str:
        if value is None or value.low is None:
            return "" if value is None else f"{value.value:.2f}"
        return f"{value.value:.2f}{blank}[{value.low:.2f},{blank}{value.high:.2f}]"

    def tested(each: Comparison) -> str:
        test = each.test_return
        if test is None or test.of == "runs":
            return estimate(test)
        return f"{estimate(test)} over {test.number} episode{'' if test.number == 1 else 's'}"

    def trained(each: Comparison) -> str:
        is_whole = each.train_return is None or each.train_episodes == RETURN_WINDOW
        return estimate(each.train_return) + ("" if is_whole else f" {few_episodes(each.train_episodes)}")

    differing = [
        row(name.replace("_", "-"), lambda each, name=name: " | ".join(map(format_setting, each.values[name])))  # type: ignore[misc]
        for name in compared[0].values
    ]
    return [
        row("runs", lambda each: f"{len(each.states)}"),
        row("seeds", lambda each: ",".join("?" if state.seed is None else f"{state.seed}" for state in each.states)),
        row("state", _states),
        *differing,
        row("test return", tested),
        row("training return", trained),
        row("P(better than first)", lambda each: estimate(each.improvement)),
        row("transitions", lambda each: number(each.env_steps)),
        row("seconds", lambda each: number(each.wall_seconds)),
        row("steps/s", lambda each: number(each.steps_per_second)),
    ]


def _states(compared: Comparison) -> str:
    """Return the state of a group's runs; with numbers where they differ."""
    states = [state.state for state in compared.states]
    found = dict.fromkeys(states)
    return states[0] if len(found) == 1 else ", ".join(f"{states.count(each)} {each}" for each in found)
