"""`runs`: a table of the runs in a folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser
from fabric_ppo.tools.help import Entry

if TYPE_CHECKING:
    from fabric_ppo.tools.run_states import RunState

ENTRY = Entry("runs [LOG_DIR]", "List the runs in a folder: state, progress, return, speed.")
"""Row of this command on the page of all."""


def run(args: list[str]) -> int:
    """Print a table of the runs in a folder, the one that was written last first."""
    parser = CommandParser("fabric-ppo runs")
    parser.description = (
        "List the runs in a folder and below it, the one that was written last first. They are training, done, "
        "stopped (--resume goes on with it) or failed."
    )
    parser.add_argument(
        "log_dir", metavar="LOG_DIR", nargs="?", default="logs", help="Folder to search. (default: logs)"
    )
    parser.add_argument("--json", action="store_true", help="Print a list of objects, with more in it.")
    given = parser.parse_args(args)
    require_text_path("LOG_DIR", given.log_dir)
    folder = Path(given.log_dir)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; a folder is expected")
    from fabric_ppo.run.result import RunResult
    from fabric_ppo.tools.find_runs import find_runs
    from fabric_ppo.tools.run_states import read_state
    from fabric_ppo.tools.tables import print_json

    def warn(error: OSError) -> None:
        print_line(f"warning: {error.filename}: cannot be read ({error.strerror})", sys.stderr)

    states = [read_state(RunResult(path), os.path.relpath(path, folder)) for path in find_runs(folder, warn)]
    states.sort(key=lambda state: (-(state.written or 0), state.id))
    for state in states:
        for problem in state.problems:
            print_line(f"warning: {state.run_dir}: {problem}", sys.stderr)
    if given.json:
        print_json([state.to_dict() for state in states])
    elif states:
        _print(states)
    else:
        print_line(f"{folder}: no runs in it", sys.stderr)
    return 0


def _print(states: list[RunState]) -> None:
    """Print the table."""
    from fabric_ppo.tools.tables import Column, print_table, prints_for_people

    columns = [
        Column("run", wraps=True),
        Column("script", rank=5),
        Column("environment", rank=2),
        Column("state"),
        Column("done", is_number=True, rank=1),
        Column("updates", is_number=True, rank=6),
        Column("transitions", is_number=True, rank=4),
        Column("return", is_number=True),
        Column("test", is_number=True, rank=1),
        Column("steps/s", is_number=True, rank=3),
        Column("started", rank=8),
        Column("written", rank=7),
    ]
    styles = {"training": "cyan", "done": "green", "failed": "bold red", "stopped": "yellow"}
    rows = [_cells(state, "," if prints_for_people() else "") for state in states]
    print_table(columns, rows, styles)
    if any(state.train_return.is_partial for state in states):
        few = "is the mean of fewer than 100 training episodes"
        print_line(f"note: * {few}; --json has their number in train_return_episodes", sys.stderr)


def _cells(state: RunState, comma: str) -> list[str]:
    """Return the texts of a row; `comma` separates thousands."""

    def so_far(number: int, total: int | None) -> str:
        return f"{number:{comma}}/{'?' if total is None else f'{total:{comma}}'}"

    def number(value: float | None, form: str) -> str:
        return "" if value is None else f"{value:{form}}"

    def moment(seconds: float | None) -> str:
        form = "%Y-%m-%d %H:%M" if comma else "%Y-%m-%dT%H:%M:%S"
        return "" if seconds is None else time.strftime(form, time.localtime(seconds))

    return [
        state.id,
        state.script or "",
        state.env_id or "",
        state.state,
        "" if state.progress is None else f"{int(100 * state.progress)}%",
        so_far(state.updates, state.total_updates),
        so_far(state.env_steps, state.total_env_steps),
        number(state.train_return_mean, ".2f") + ("*" if state.train_return.is_partial else ""),
        number(state.test_return_mean, ".2f"),
        number(state.steps_per_second, f"{comma}.0f"),
        moment(state.started),
        moment(state.written),
    ]
