"""`plot`: learning curves of runs, as a picture."""

from __future__ import annotations

from pathlib import Path

from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser
from fabric_ppo.tools.help import Entry

ENTRY = Entry("plot RUN_DIR ... --out FILE", "Draw learning curves.")
"""Row of this command on the page of all."""


def run(args: list[str]) -> int:
    """Draw the learning curves of runs into a picture."""
    parser = CommandParser("fabric-ppo plot")
    parser.description = "Draw the learning curves of runs into a picture."
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="Folders of runs, a curve for each.")
    parser.add_argument("--out", required=True, metavar="FILE", help="Picture to write: .svg, .png or .pdf.")
    given = parser.parse_args(args)
    for run_dir in given.run_dirs:
        require_text_path("RUN_DIR", run_dir)
    require_text_path("--out", given.out)
    from fabric_ppo.tools.plot import plot_runs

    plot_runs([Path(run_dir) for run_dir in given.run_dirs], Path(given.out))
    print(given.out)
    return 0
